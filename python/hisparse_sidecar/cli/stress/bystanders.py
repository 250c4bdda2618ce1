"""The slow and the dying clients of a run, each a process."""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from hisparse_sidecar.cli.stress.bystander import live
from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.server_process import ServerProcess, process_context

_STEP_SECONDS, _END_SECONDS = 10.0, 30.0
_REFUSALS = ("HostPoolFull", "DeviceArenaFull", "TierFull")


@dataclass
class _Bystander:
    process: BaseProcess
    said: Connection
    dies: bool
    generation: int  # of the server that it is a client of


class Bystanders:
    """Starts them, hears what they say, and waits for their ends."""

    def __init__(self, server: ServerProcess, counts: Counts) -> None:
        self._server = server
        self._counts = counts
        self._running: list[_Bystander] = []

    @property
    def num_running(self) -> int:
        """Those that may still own something."""
        return len(self._running)

    def start(self, dies: bool, pause_seconds: float, text: int) -> None:
        """Starts one, and returns when its step is open, or was refused."""
        context = process_context()
        hears, says = context.Pipe(duplex=False)
        arguments = (self._server.socket_path, dies, pause_seconds, text, says)
        process = context.Process(target=live, args=arguments, daemon=True)
        process.start()
        says.close()
        self._running.append(_Bystander(process, hears, dies, self._server.generation))
        hears.poll(_STEP_SECONDS)

    def look(self) -> None:
        """Takes leave of those that have ended."""
        self._running = [one for one in self._running if not self._has_ended(one, 0.0)]

    def wait(self) -> None:
        """Returns when all have ended."""
        for one in self._running:
            if not self._has_ended(one, _END_SECONDS):
                self._counts.remark(f"a client is alive after {_END_SECONDS:.0f} s")
                one.process.kill()
        self._running.clear()

    def _has_ended(self, one: _Bystander, seconds: float) -> bool:
        one.process.join(seconds)
        if one.process.exitcode is None:
            return False
        words = list(_words(one.said))
        one.said.close()
        self._judge(one, words)
        return True

    def _judge(self, one: _Bystander, words: list[str]) -> None:
        last = words[-1] if words else "nothing"
        is_refused = last.startswith(_REFUSALS)
        if is_refused or one.generation != self._server.generation or self._server.is_killed:
            return
        if last != ("step" if one.dies else "done"):
            self._counts.remark(f"a client ended with {one.process.exitcode} and said {last}")
            return
        self._counts.clients["dying" if one.dies else "slow"] += 1


def _words(said: Connection) -> list[str]:
    words: list[str] = []
    try:
        while said.poll():
            words.append(said.recv())
    except EOFError:
        return words
    return words
