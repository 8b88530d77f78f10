"""How long something took, and whether it is time again."""

import time


class Clock:
    """Seconds in laps.

    Example:
        >>> clock = Clock()
        >>> clock.past(60), 0 <= clock.lap() < 60
        (False, True)
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def past(self, seconds: float) -> bool:
        """Whether the present lap has taken that long."""
        return time.perf_counter() - self._since >= seconds

    def lap(self) -> float:
        """Seconds of the present lap, which ends here."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
