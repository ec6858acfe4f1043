"""joblib on the workers of a group; the extra ``joblib`` installs what it needs.

    import execnet.joblib, joblib

    with execnet.Group(["4*popen"]) as group, joblib.parallel_config("execnet", group=group):
        results = joblib.Parallel()(joblib.delayed(work)(item) for item in items)

To import this registers the backend "execnet".  What travels is pickled, so both ends can run code
in each other, and joblib has to be installed for the workers.
"""

from __future__ import annotations

from joblib import register_parallel_backend
from joblib.parallel import ParallelBackendBase

from . import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

    from ._calls.executor import Executor
    from .multi import Group

__all__ = ["GroupBackend"]


class GroupBackend(ParallelBackendBase):  # type: ignore[misc]
    """Runs the calls of ``joblib.Parallel`` in the workers of a group.

    group: whose workers; they are not ended.  As many calls run at once as the group has workers.
    """

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_timeout = True
    default_n_jobs = -1

    def __init__(self, group: Group | None = None, **options: object) -> None:
        super().__init__(**options)
        if group is None:
            raise ValueError('joblib.parallel_config("execnet", group=...) needs a group')
        self._group = group
        self._executor: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at once; -1 is for as many as there are workers."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        workers = max(1, len(self._group))
        wanted = -1 if n_jobs is None else n_jobs
        return min(wanted, workers) if wanted > 0 else max(1, workers + 1 + wanted)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: object) -> int:
        """Take a call of ``Parallel``; return how many of its calls run at once."""
        self.parallel = parallel
        self._executor = self._group.executor(codec=codecs.pickle)
        return self.effective_n_jobs(n_jobs)

    def submit(
        self, func: Callable[[], object], callback: Callable[[Future[object]], object] | None = None
    ) -> Future[object]:
        """Have some calls run by whichever worker is free."""
        assert self._executor is not None
        future = self._executor.submit(_run, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # before joblib 1.5

    def retrieve_result_callback(self, out: Future[object]) -> object:
        """Return what came of calls that have ended, or raise it."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Begin no more of what was submitted."""
        self.terminate()
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)

    def terminate(self) -> None:
        """Take no more calls."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _run(func: Callable[[], object]) -> object:
    return func()


register_parallel_backend("execnet", GroupBackend)
