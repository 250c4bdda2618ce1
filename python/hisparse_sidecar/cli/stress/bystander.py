"""A client in a process of its own: one that is slow within a step, or dies in it."""

import os
import signal
import time
from pathlib import Path
from typing import Protocol

from hisparse_sidecar.cli.stress.child import die_with_parent
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.rows import layer_inputs
from hisparse_sidecar.cli.stress.texts import text
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.errors import HisparseError

_ROWS = 40


class Sender(Protocol):
    """The sending end of a pipe."""

    def send(self, obj: str) -> None:
        """Sends one word."""


def live(socket_path: Path, dies: bool, pause_seconds: float, number: int, said: Sender) -> None:
    """Opens a prompt, begins a step, pauses within it; then ends it, or is killed.

    Args:
        socket_path: of the server.
        dies: the process kills itself in the step.
        pause_seconds: how long the step is open for nothing.
        number: of its text.
        said: gets "step" once the step is open, "done" at the end, or what was wrong.
    """
    die_with_parent()
    try:
        with RemoteSession(socket_path) as session:
            _live(session, dies, pause_seconds, number, said)
        said.send("done")
    except HisparseError as error:
        said.send(f"{type(error).__name__}: {error}")


def _live(
    session: RemoteSession, dies: bool, pause_seconds: float, number: int, said: Sender
) -> None:
    words = text(number)
    prompt = words.tokens(0, _ROWS + 1)
    opened = session.open_prompt(prompt, 0)
    life = Life(0, 0, opened.sequence, "", words, _ROWS, _ROWS)
    session.begin_step([(opened.sequence, _ROWS)], "prefill", token_ids=prompt[:_ROWS])
    links = life.links(0, _ROWS)
    for layer in range(session.config.model.num_layers):
        session.run_layer(layer, layer_inputs(session.config, links, layer))
        if layer == 0:
            said.send("step")
            time.sleep(pause_seconds)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
    session.end_step()
    session.close_sequence(opened.sequence)
