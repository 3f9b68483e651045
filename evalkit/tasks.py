"""Finds and loads lm-eval tasks by name: our own, the user's, and lm-eval's; and hashes their documents as it does."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evalkit.errors import EvalkitError, TaskError
from evalkit.resources import resource_dir

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# lm-eval warns through loggers without a handler, which Python would print in the middle of our progress bars;
# a run writes them to its log.
logging.getLogger("lm_eval").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their documents, as lm-eval's `TaskManager.load` returns them.

    Attributes
    ----------
    tasks
        Every task by name.
    groups, group_map
        The groups that were asked for, and the names of their members.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    group_map: Mapping[str, list[str]]


@dataclass(frozen=True)
class TaskInfo:
    """One entry of the task index."""

    name: str
    kind: Literal["task", "group", "tag"]
    tags: tuple[str, ...]
    path: Path | None


def load_tasks(
    names: Sequence[str],
    *,
    tasks_dirs: Sequence[Path] = (),
    data_dir: Path | None = None,
    task_seed: int | None = None,
    n_items: int | None = None,
) -> LoadedTasks:
    """Load tasks, groups and tags by name or glob, with their documents.

    Parameters
    ----------
    names
        Names; a glob such as `gen_*` means the tasks that match it.
    tasks_dirs
        Folders with the user's own definitions, which take precedence. They may run Python code when loaded.
    data_dir
        Folder that the `local_*` tasks read.
    task_seed, n_items
        Seed and size of the generated test sets; None leaves the task's own.

    Raises
    ------
    TaskError
        A name is unknown, or the documents of a task cannot be had.
    """
    given = {"data_dir": str(data_dir.resolve()) if data_dir else None, "task_seed": task_seed, "n_items": n_items}
    metadata = {key: value for key, value in given.items() if value is not None}
    manager, wanted = _find(names, tasks_dirs, metadata)
    try:
        loaded = manager.load(wanted)
    except EvalkitError:
        raise
    except Exception as error:
        detail = str(error).strip().splitlines()
        raise TaskError(
            f"the tasks cannot be loaded ({type(error).__name__}: {detail[0] if detail else 'no message'})",
            where=", ".join(names),
            do="Check the task's definition; data sets on the hub need a network, or a filled cache",
        ) from error
    return LoadedTasks(loaded["tasks"], loaded.get("groups", {}), loaded.get("group_map", {}))


def list_tasks(tasks_dirs: Sequence[Path] = (), *, include_lm_eval: bool = False) -> list[TaskInfo]:
    """List what can be loaded by name, without loading any documents."""
    manager = _manager(tasks_dirs, {}, include_lm_eval=include_lm_eval)
    kinds: dict[str, Literal["task", "group", "tag"]] = {"TASK": "task", "PY_TASK": "task", "GROUP": "group"}
    return [
        TaskInfo(name, kinds.get(entry.kind.name, "tag"), tuple(sorted(entry.tags)), entry.yaml_path)
        for name, entry in sorted(manager.task_index.items())
    ]


def doc_hash(doc: Any) -> str:
    """Return lm-eval's hash of a document: sha256 of its indented JSON."""
    import hashlib
    import json

    import orjson

    if _is_plain(doc):
        try:  # the same text, ten times as fast
            return hashlib.sha256(orjson.dumps(doc, option=orjson.OPT_INDENT_2)).hexdigest()
        except TypeError:  # half a surrogate pair, or an integer of more than 64 bits
            pass
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_plain(value: Any) -> bool:
    """Whether a value is one that both JSON writers write alike: numbers that are not whole are not."""
    kind = type(value)
    if kind is dict:
        return all(type(name) is str for name in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if kind is list else kind in (str, int, bool, type(None))


def cluster_of(task: Any, doc: Mapping[str, Any]) -> str | None:
    """Return the unit of independence of a document, None when it stands for itself.

    A task names the document field in its metadata as `cluster_field`.
    """
    field = (task.config.metadata or {}).get("cluster_field")
    return None if field is None or doc.get(field) is None else str(doc[field])


def _manager(tasks_dirs: Sequence[Path], metadata: Mapping[str, Any], *, include_lm_eval: bool) -> TaskManager:
    from lm_eval.tasks import TaskManager

    for folder in tasks_dirs:
        if not folder.is_dir():
            raise TaskError("there is no such folder", where=str(folder), do="Check --tasks-dir")
    paths = [resource_dir("tasks"), *tasks_dirs]
    return TaskManager(include_path=paths, include_defaults=include_lm_eval, metadata=dict(metadata))


def _find(
    names: Sequence[str], tasks_dirs: Sequence[Path], metadata: Mapping[str, Any]
) -> tuple[TaskManager, list[str]]:
    """Return a manager that knows all names, and the names with globs replaced by what they match.

    lm-eval's own thousands of definitions take seconds to index, so they are read only when ours are not enough.
    """
    if not names:
        raise TaskError("no task was named", do="Give one or more: `evalkit tasks` lists them")
    for include_lm_eval in (False, True):
        manager = _manager(tasks_dirs, metadata, include_lm_eval=include_lm_eval)
        matched = {name: _matches(name, manager) for name in names}
        if all(matched.values()):
            return manager, list(dict.fromkeys(one for found in matched.values() for one in found))
    unknown = next(name for name, found in matched.items() if not found)
    close = difflib.get_close_matches(unknown, manager.all_tasks, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise TaskError(f"there is no task '{unknown}'", where="tasks", do=f"{hint}`evalkit tasks --all` lists them")


def _matches(name: str, manager: TaskManager) -> list[str]:
    """A name stands for itself; a glob stands for tasks only, since their groups would bring them in twice."""
    if name in manager.task_index:
        return [name]
    return sorted(fnmatch.filter(manager.all_subtasks, name))
