"""Finds stop strings in a growing text: an automaton over characters (Aho and Corasick, 1975)."""

from collections.abc import Iterable


class StopStrings:
    """The automaton of some stop strings. Immutable; a search is one state number, 0 at the start.

    Each state stands for the longest end of the text so far that begins some stop string, so its depth says how much
    must be held back. What is found does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._found: list[str] = [""]  # the longest stop string that ends here
        depths = [0]
        for stop in stops:
            state = 0
            for char in stop:
                child = self._next[state].get(char)
                if child is None:
                    child = len(self._next)
                    self._next[state][char] = child
                    self._next.append({})
                    self._found.append("")
                    depths.append(depths[state] + 1)
                state = child
            self._found[state] = stop
        self._fail, order = self._failure_links()
        self._held = [0] * len(depths)
        for state in order:
            fail = self._fail[state]
            self._found[state] = self._found[state] or self._found[fail]
            # A complete stop string that leads nowhere holds back only what may begin another.
            self._held[state] = depths[state] if self._next[state] else self._held[fail]

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def found(self, state: int) -> str:
        """The longest stop string that ends at this state, or ""."""
        return self._found[state]

    def num_held(self, state: int) -> int:
        """How many of the last characters may be the start of a stop string."""
        return self._held[state]

    def _failure_links(self) -> tuple[list[int], list[int]]:
        fail = [0] * len(self._next)
        order = list(self._next[0].values())  # breadth first: a failure link points to a shallower state
        for state in order:
            for char, child in self._next[state].items():
                link = fail[state]
                while link and char not in self._next[link]:
                    link = fail[link]
                fail[child] = self._next[link].get(char, 0)
                order.append(child)
        return fail, order
