"""The audit's brute-force twin: plain Python, no code shared with evalkit, slow and easy to believe."""

from __future__ import annotations

import functools
import math
import random
import unicodedata
from collections import defaultdict

# Lao to Thai, Burmese, Khmer, kana, Han: scripts without spaces, where each letter is a token.
UNSPACED = [
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3041", "\u30ff"),
    ("\u3400", "\u9fff"),
]


def tokens(text):
    """Return (token, start, end) for each token of `text`."""
    found, current, start, end, lonely = [], "", 0, 0, False
    for place, character in enumerate(text):
        once = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
        for letter in unicodedata.normalize("NFKD", once.casefold()):
            category = unicodedata.category(letter)
            if category == "Cf" or (category[0] == "M" and not current):
                continue
            if category[0] == "M":
                current, end = current + letter, place + 1
                continue
            alone = any(low <= letter <= high for low, high in UNSPACED)
            if current and (category[0] not in "LN" or alone or lonely):
                found.append((current, start, end))
                current = ""
            if category[0] in "LN":
                start = start if current else place
                current, end, lonely = current + letter, place + 1, alone
    return [*found, (current, start, end)] if current else found


@functools.cache
def words(text):
    return tuple(token for token, _, _ in tokens(text))


def runs(document, field, n, *, every=False):
    """Return the runs that a document and a field share, as (place in field, tokens, start, end) in document order.

    A run is a maximal stretch of common consecutive tokens, of at least n tokens or of the whole field. It is recorded
    unless it begins inside an earlier recorded run that begins at the same token of the field and is at least as
    long; with `every`, all runs are returned.
    """
    text, wanted, found, recorded = tokens(document), words(field), [], []
    for i in range(len(text)):
        for place in range(len(wanted)):
            if i and place and text[i - 1][0] == wanted[place - 1]:
                continue  # it began earlier
            size = 0
            while i + size < len(text) and place + size < len(wanted) and text[i + size][0] == wanted[place + size]:
                size += 1
            repeats = any(at < i < at + longer and p == place and longer >= size for at, p, longer in recorded)
            if size and size >= min(n, len(wanted)) and (every or not repeats):
                recorded.append((i, place, size))
                found.append((place, size, text[i][1], text[i + size - 1][2]))
    return found


@functools.cache
def stretches(documents, fields, n):
    """For each key of `fields` ((key, words), ...): {document: [(place in it, place in the field, words), ...]}.

    All maximal common stretches of at least n words, or of the whole field where it is shorter; found by looking at
    every window.
    """
    windows, lengths, sizes = defaultdict(list), set(), {}
    for key, sequence in fields:
        size = sizes[key] = min(n, len(sequence))
        lengths.add(size)
        for place in range(len(sequence) - size + 1):
            windows[sequence[place : place + size]].append((key, place))
    found = defaultdict(lambda: defaultdict(set))
    for number, text in enumerate(documents):
        sequence = words(text)
        for size in lengths:
            for i in range(len(sequence) - size + 1):
                for key, place in windows.get(sequence[i : i + size], ()):
                    if sizes[key] == size:
                        found[key][number].add((i, place, size))
    return {
        key: {number: sorted(_grow(hits)) for number, hits in by_document.items()} for key, by_document in found.items()
    }


def in_common(documents, sequences, n):
    """The stretches of all fields that have n words, and of all questions."""
    fields = ((key, one) for key, one in sequences.items() if len(one) >= n or (one and key[1] == "question"))
    return stretches(tuple(documents), tuple(fields), n)


def _grow(hits):
    """Join windows that follow each other word by word into stretches."""
    for i, place, size in hits:
        if (i - 1, place - 1, size) in hits:
            continue
        more = 0
        while (i + more + 1, place + more + 1, size) in hits:
            more += 1
        yield i, place, size + more


def percentile_low(sizes, percent):
    """The largest of the sizes below which at most so many percent of the others lie."""
    ordered = sorted(sizes)
    return ordered[int(percent / 100 * (len(ordered) - 1))]


def boilerplate(documents, fields, n):
    """The stretches (key, document, place, words) that are phrases of many texts, or pass through the corpus.

    `fields` is as `assess` takes it.
    """
    sequences = {key: words(text) for key, text in fields.items() if words(text)}
    wanted = {key: one for key, one in sequences.items() if len(one) >= n or key[1] == "question"}
    texts = defaultdict(set)
    for key, sequence in wanted.items():
        for _, gram in _grams(sequence, n):
            texts[gram].add(sequence if len(sequence) >= n else key)
    found = in_common(documents, sequences, n)
    hits, passing = defaultdict(int), defaultdict(int)
    for key, by_document in found.items():
        for some in by_document.values():
            covered = {p + k for _, p, size in some for k in range(size)}
            for _, place, size in some:
                for k in range(place, place + size - min(n, len(wanted[key])) + 1):
                    hits[key, k] += 1
                    passing[key, k] += 2 * len(covered) < len(wanted[key])
    ignored = set()
    for key, by_document in found.items():
        grams = dict(_grams(wanted[key], n))
        for d, some in by_document.items():
            for i, place, size in some:
                mine = range(place, place + size - min(n, len(wanted[key])) + 1)
                common = [len(texts[grams[k]]) >= 10 for k in mine]
                often = [passing[key, k] >= 10 and passing[key, k] >= 0.9 * hits[key, k] for k in mine]
                phrase = all(common) or (size < 16 and all(a or b for a, b in zip(common, often, strict=True)))
                if phrase or not _is_supported(key, fields, words(documents[d])[i + size :]):
                    ignored.add((key, d, i, place, size))
                is_short = key[1] == "question" and len(wanted[key]) < 8
                if is_short and any(
                    other[0] != key[0] and size < longer and k <= i and i + size <= k + longer
                    for other, its in found.items()
                    for k, _, longer in its.get(d, ())
                ):
                    ignored.add((key, d, i, place, size))
    return ignored


def _is_supported(key, fields, after):
    """Whether three in four choices in their order, or the answer, follow a question of fewer than 8 words."""
    item, name = key
    if name != "question" or len(words(fields[key])) >= 8:
        return True
    mine = {other: words(text) for (one, other), text in fields.items() if one == item and words(text)}
    wanted = [text for other, text in mine.items() if other.startswith("choice_")] or [
        text for other, text in mine.items() if other == "answer"
    ]
    n = 0
    for one in wanted:
        for gap in range((2 if len(wanted) > 1 else 8) + 1):
            if after[gap : gap + len(one)] == one:
                n, after = n + 1, after[gap + len(one) :]
                break
    is_little = len(words(fields[key])) + sum(map(len, wanted)) < 8
    return n >= len(wanted) - (0 if is_little else len(wanted) // 4)


def _grams(sequence, n):
    width = min(n, len(sequence))
    return [(k, sequence[k : k + width]) for k in range(len(sequence) - width + 1)]


def assess(documents, fields, rule, ignored=frozenset()):
    """Apply a rule, given as the mapping that its YAML file holds, to texts.

    `fields` maps (doc_hash, name) to a text. Returns for each field that the rule can judge: its contamination, whether
    it is dirty, and in how many documents it was seen. Stretches that are `ignored` (see `boilerplate`) do not count.
    """
    sequences = {key: words(text) for key, text in fields.items()}
    n = rule["n"]
    if isinstance(n, dict):
        sizes = [len(sequence) for (_, name), sequence in sequences.items() if name == "question"]
        n = min(max(percentile_low(sizes, n["percentile"]), n["low"]), n["high"])
    wanted = {}
    for key, sequence in sequences.items():
        kind = "choices" if key[1].startswith("choice_") else key[1]
        if kind not in rule.get("fields", ["question", "answer", "choices", "passage"]):
            continue
        if len(sequence) >= n or (key[1] == "question" and len(sequence) >= rule.get("shortest_question", 1)):
            wanted[key] = sequence
    measures = {"edit_similarity": _similarities, "weighted_overlap": _overlaps}
    if rule["measure"] in measures:
        least = rule["threshold"]
        more = (ignored, rule) if rule["measure"] == "edit_similarity" else (least,)
        values = measures[rule["measure"]](documents, wanted, sequences, *more)
        return {
            key: (
                max(some.values(), default=0.0),
                any(one >= _least(rule, wanted[key]) for one in some.values()),
                sum(one >= _least(rule, wanted[key]) for one in some.values()),
            )
            for key, some in values.items()
        }
    # A match with skips begins with ten words that do not differ.
    is_skipping = rule["measure"] == "skipgram_coverage"
    found = in_common(documents, sequences, min(n, 10) if is_skipping else n)
    result = {}
    for key, sequence in wanted.items():
        seen = {
            d: kept
            for d, some in found.get(key, {}).items()
            if (kept := [one for one in some if (key, d, *one) not in ignored])
        }
        if rule["measure"] == "common_subsequence":
            values = {
                d: max(_in_order(sequence, words(documents[d]), *one) for one in some) for d, some in seen.items()
            }
            value, least = max(values.values(), default=0.0), rule["threshold"]
            result[key] = value, value >= least, sum(one >= least for one in values.values())
            continue
        if is_skipping:
            seen = {
                d: [(i, p, _skipping(sequence, words(documents[d]), i, p, size)) for i, p, size in some]
                for d, some in seen.items()
            }
            seen = {d: [one for one in some if one[2] >= min(n, len(sequence))] for d, some in seen.items()}
        seen = {d: [one[1:] for one in some] for d, some in seen.items()}
        if rule["measure"] == "whole_field":
            seen = {d: [one for one in some if one[1] == len(sequence)] for d, some in seen.items()}
        if rule["measure"] == "substring":
            samples = _samples(key, fields[key], rule, min(n, len(sequence)))
            seen = {
                d: [(p, size) for p, size in some if any(p <= low and high <= p + size for low, high in samples)]
                for d, some in seen.items()
            }
        seen = {d: some for d, some in seen.items() if some}
        value = _measure(rule, len(sequence), min(n, len(sequence)), seen)
        dirty = value > rule["threshold"] if rule.get("is_strict") else value >= rule["threshold"]
        result[key] = value, dirty, len(seen)
    return result


def _least(rule, field):
    """The threshold of a field: shorter ones can have a higher one."""
    share = min(max((30 - len(field)) / 22, 0), 1)
    return rule["threshold"] + share * (rule.get("short_threshold", rule["threshold"]) - rule["threshold"]) - 1e-9


def _measure(rule, size, n, seen):
    if rule["measure"] in ("any_ngram", "whole_field", "substring"):
        return float(bool(seen))
    if rule["measure"] == "longest_match":
        return max((length for some in seen.values() for _, length in some), default=0) / size
    shares = []
    together = [[one for some in seen.values() for one in some]]
    for some in list(seen.values()) if rule.get("one_document") else together:
        if rule["measure"] == "ngram_share":
            starts = {p + k for p, length in some for k in range(length - n + 1)}
            shares.append(len(starts) / (size - n + 1))
        else:
            shares.append(len({p + k for p, length in some for k in range(length)}) / size)
    return max(shares, default=0.0)


def _skipping(field, document, i, place, size):
    """Words from there to the last common one before a fifth that differs."""
    end, n_different = size, 0
    while size >= 10 and place + size < len(field) and i + size < len(document) and n_different <= 4:
        size += 1
        if field[place + size - 1] == document[i + size - 1]:
            end = size
        else:
            n_different += 1
    return end


def _in_order(field, document, i, place, size):
    """Longest common subsequence around a match, as a share of the shorter of the two."""
    around = document[max(0, i - len(field)) : i + size + len(field)]
    before = [0] * (len(around) + 1)
    for word in field:
        now = [0]
        for b, other in enumerate(around):
            now.append(before[b] + 1 if word == other else max(before[b + 1], now[b]))
        before = now
    return max(before[-1], size) / min(len(field), len(document))


def _similarities(documents, wanted, sequences, ignored, rule=None):
    """For each field and document the largest share of the field that stands there in one unedited or edited copy.

    With a rule, only whole fields and edited copies count, and not where another item's edited copy is more similar and
    covers half of the place, nor shorter questions that are not very similar and have not half of their choices, or
    of their answer, around them.
    """
    exact = {key: one for key, one in in_common(documents, sequences, 8).items() if key in wanted}
    values = {key: defaultdict(float) for key in wanted}
    weigh = _weights(sequences)
    near, rivals = near_matches(tuple(documents), tuple(sequences.items())), defaultdict(list)
    for key, d, similarity, _, _, begin, end in near:
        rivals[d].append((key[0], similarity, *_characters(documents[d], begin, end)))

    def outdone(key, d, similarity, begin, end):
        if rule is None or similarity < rule["threshold"]:
            return False
        start, stop = _characters(documents[d], begin, end)
        return any(
            item != key[0] and other > similarity + 1e-9 and min(stop, high) - max(start, low) >= (stop - start) / 2
            for item, other, low, high in rivals[d]
        )

    for key, by_document in exact.items():
        weights = [weigh[word] for word in wanted[key]]
        for d, some in by_document.items():
            for one in some:
                i, place, size = one
                similarity = sum(weights[place : place + size]) / sum(weights)
                if rule and size < len(wanted[key]):
                    continue
                if (key, d, *one) not in ignored and not outdone(key, d, similarity, i, i + size):
                    values[key][d] = max(values[key][d], similarity)
    for key, d, similarity, low, high, begin, end in near:
        is_short = key[1] == "question" and len(sequences[key]) < 30
        around = words(documents[d])[low:high]
        if (
            rule
            and is_short
            and similarity < rule["unsupported_threshold"]
            and _support(key[0], sequences, around) < 0.5
        ):
            continue
        if key in wanted and not outdone(key, d, similarity, begin, end):
            values[key][d] = max(values[key][d], similarity)
    return values


def _support(item, sequences, text):
    choices = [one for (other, name), one in sequences.items() if other == item and name.startswith("choice_") and one]
    mine = choices or [one for (other, name), one in sequences.items() if (other, name) == (item, "answer") and one]
    shares = []
    for one in mine:
        n = min(len(one), 3)
        grams = {one[k : k + n] for k in range(len(one) - n + 1)}
        shares.append(
            len([gram for gram in grams if any(text[k : k + n] == gram for k in range(len(text)))]) / len(grams)
        )
    return sum(shares) / len(shares) if shares else 1


def _weights(sequences):
    """Inverse document frequency of each word among the fields that an audit looks for."""
    fields = [one for (_, name), one in sequences.items() if len(one) >= 8 or (one and name == "question")]
    counts = defaultdict(int)
    for field in fields:
        for word in set(field):
            counts[word] += 1
    return {word: math.log((len(fields) + 1) / count) for word, count in counts.items()}


@functools.cache
def near_matches(documents, fields):
    """List the stretches that hold an edited or reordered copy, and where in them the copy is aligned.

    As (key, document, similarity, first word of the stretch, its end, first word of the copy, its end).
    """
    sequences, matches = dict(fields), []
    weigh = _weights(sequences)
    places = defaultdict(int)
    for sequence in sequences.values():
        for k in range(len(sequence) - 4 if len(sequence) >= 8 else 0):
            places[tuple(sequence[k : k + 5])] += 1
    close = stretches(documents, tuple((key, one) for key, one in fields if len(one) >= 8), 5)
    for key, by_document in close.items():
        field = sequences[key]
        for d, some in by_document.items():
            rare = [
                (i, place, size)
                for i, place, size in some
                if any(places[tuple(field[k : k + 5])] <= 32 for k in range(place, place + size - 4))
            ]
            weights = [weigh[word] for word in field]
            for low, high, covered in _near(field, rare, weights, len(words(documents[d]))):
                text = words(documents[d])[low:high]
                cost, begin, end = _least_cost(field, text, weights)
                similarity = 1 - cost / sum(weights)
                if similarity >= 0.5 - 1e-9 or covered >= 0.6 - 1e-9:
                    similarity = max(similarity, covered)
                    matches.append((key, d, similarity, low, high + 100, low + begin, low + end))
    return matches


def _overlaps(documents, wanted, sequences, threshold):
    """decon's score of each question."""
    questions = [sequence for (_, name), sequence in sequences.items() if name == "question" and sequence]
    answers = {key: one for key, one in sequences.items() if key[1] not in ("question", "passage") and one}
    passages = {key: one for key, one in sequences.items() if key[1] == "passage" and len(one) >= 8}
    shares = _similarities(documents, passages, sequences, frozenset())
    of_questions = _rarity(questions, 4)
    of_answers = _rarity([one for one in answers.values() if len(one) > 3], 3)
    by_item = defaultdict(list)
    for (item, _), answer in answers.items():
        by_item[item].append(answer)
    values = {key: defaultdict(float) for key in wanted}
    for key, d, _, low, high, _, _ in near_matches(tuple(documents), tuple(sequences.items())):
        if key not in wanted:
            continue
        item, _ = key
        text = words(documents[d])[low:high]
        n_passage = len(sequences.get((item, "passage"), ()))
        passage = shares.get((item, "passage"), {}).get(d, 0.0)
        for answer in by_item[item] or [()]:
            value = _overlap(wanted[key], answer, n_passage, text, passage, of_questions, of_answers, threshold)
            values[key][d] = max(values[key][d], value)
    return values


def _rarity(texts, n):
    counts = defaultdict(int)
    for text in texts:
        for one in {text[k : k + n] for k in range(len(text) - n + 1)}:
            counts[one] += 1
    return {one: math.log(len(texts) / count) for one, count in counts.items()}


def _overlap(question, answer, n_passage, text, passage, of_questions, of_answers, threshold):
    wanted = {question[k : k + 4] for k in range(len(question) - 3)}
    found = {text[k : k + 4] for k in range(len(text) - 3)} & wanted
    whole = sum(of_questions[one] for one in wanted)
    asked = sum(of_questions[one] for one in found) / whole if whole else len(found) / len(wanted)
    size = len(question) + len(answer) + n_passage
    required = 1.0 if size <= 17 else threshold if size >= 42 else 1 - (1 - threshold) * (size - 17) / 25
    if not found or asked < (required - 0.3) / 0.7 - 1e-9:
        return 0.0
    after = text[max(k + 4 for k in range(len(text) - 3) if text[k : k + 4] in wanted) :]
    answered = 0.0
    if 0 < len(answer) <= 3:
        after = after[:50]
        answered = float(any(after[k : k + len(answer)] == answer for k in range(len(after))))
    elif answer:
        after = after[: max(100, 2 * len(answer))]
        parts = {answer[k : k + 3] for k in range(len(answer) - 2)}
        there = parts & {after[k : k + 3] for k in range(len(after) - 2)}
        whole = sum(of_answers[one] for one in parts)
        answered = sum(of_answers[one] for one in there) / whole if whole else len(there) / len(parts)
    shares = {
        (True, True): (0.7, 0.2, 0.1),
        (True, False): (0.75, 0.25, 0.0),
        (False, True): (0.85, 0.0, 0.15),
        (False, False): (1.0, 0.0, 0.0),
    }
    q, a, p = shares[bool(answer), bool(n_passage)]
    if (answer or n_passage) and len(wanted) < 17:
        lost = q * (1 - (0.5 + 0.5 * len(wanted) / 17))
        others = bool(answer) + bool(n_passage)
        q, a, p = q - lost, a + lost / others * bool(answer), p + lost / others * bool(n_passage)
    if 0 < len(answer) < 4:
        lost = a * (1 - (0.5 + 0.5 * len(answer) / 4))
        q, a = q + lost, a - lost
    total = q * asked + a * answered + p * passage
    return 1.0 if total > 1 - 1e-9 else min(1.0, total * threshold / required)


def _near(field, seeds, weights, n_words):
    """Where the seeds that lie close together cover 20% of the field: the words that are compared."""
    groups = []
    for i, place, size in sorted(seeds):
        reached = max((a + c for a, _, c in groups[-1]), default=0) if groups else 0
        if not groups or i > reached + max(20, len(field) // 2):
            groups.append([])
        groups[-1].append((i, place, size))
    for group in groups:
        covered = {p + k for _, p, size in group for k in range(size)}
        share = sum(weights[k] for k in covered) / sum(weights)
        if len(covered) < 0.2 * len(field) or share < 0.3:
            continue
        low = max(min(i - p for i, p, _ in group), group[0][0] - len(field))
        high = min(max(i - p + len(field) for i, p, _ in group), max(i + size for i, _, size in group) + len(field))
        margin = max(16, len(field) // 4)
        yield max(0, low - margin), min(n_words, high + margin), share


def _least_cost(field, text, weights):
    """Least weight of the words to insert, delete or replace so that the field stands somewhere in the text, and where.

    Of several places the one that ends first; of several ways there, to replace comes before to insert and to delete.
    """
    insertion = sum(weights) / len(field)
    before = [(0.0, b) for b in range(len(text) + 1)]
    for word, weight in zip(field, weights, strict=True):
        now = [(before[0][0] + weight, 0)]
        for b, other in enumerate(text):
            ways = [
                (before[b][0] + (word != other) * weight, before[b][1]),
                (now[b][0] + insertion, now[b][1]),
                (before[b + 1][0] + weight, before[b + 1][1]),
            ]
            best = ways[0]
            for way in ways[1:]:
                best = way if way[0] < best[0] - 1e-9 else best
            now.append(best)
        before = now
    best = (sum(weights), 0, 0)
    for end, (cost, begin) in enumerate(before):
        best = (cost, begin, end) if end and cost < best[0] - 1e-9 else best
    return best


@functools.cache
def _places(text):
    return [(start, end) for _, start, end in tokens(text)]


def _characters(text, begin, end):
    """Where some words begin and end in their text."""
    places = _places(text)
    return (places[begin][0], places[end - 1][1]) if end > begin else (0, 0)


def _samples(key, text, rule, shortest):
    """The stretches of words around random stretches of letters."""
    owner = [number for number, (_, start, end) in enumerate(tokens(text)) for _ in range(start, end)]
    n_words = owner[-1] + 1
    if len(owner) <= rule["length"]:
        return [(0, n_words)]
    draws, stretches = random.Random(f"{key[0]} {key[1]}"), []
    for _ in range(rule["n_samples"]):
        at = draws.randrange(len(owner) - rule["length"] + 1)
        low, high = owner[at], owner[at + rule["length"] - 1] + 1
        while high - low < shortest and high < n_words:
            high += 1
        while high - low < shortest:
            low -= 1
        stretches.append((low, high))
    return stretches
