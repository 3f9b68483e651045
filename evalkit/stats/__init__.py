"""Statistics: pure functions of arrays that return small results which say what they mean."""
