"""The operations of clients: each calls the server as an engine would, and keeps the books."""

from hisparse_sidecar.cli.stress.checks import compare
from hisparse_sidecar.cli.stress.dealer import Operation
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.rows import layer_inputs
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.texts import prompt_tokens, text
from hisparse_sidecar.step.step import StepKind


def open_prompt(run: Run, operation: Operation) -> None:
    """A prompt of a text; what is found of it must be right."""
    words, prompt = text(operation["text"]), prompt_tokens(operation["text"])
    client, tenant, new = operation["client"], operation["tenant"], operation["max_new_tokens"]
    session, tokens = run.session(client), words.tokens(0, prompt)
    with run.timed("open"):
        handle, cached = session.open_prompt(tokens, new, tenant=tenant)
    run.sampler.note_opening(run.counts.last_us("open"), (prompt - 1) // 64, cached // 64)
    life = Life(operation["life"], client, handle, tenant, words, prompt, prompt + new, cached)
    run.lives[life.number] = life
    run.counts.hits += cached
    if cached % 64 or cached >= prompt:
        run.counts.remark(f"{cached} tokens of a prompt of {prompt} were found")
    compare(run, life)


def prefill(run: Run, operation: Operation) -> None:
    """A chunk of a prompt."""
    life = run.lives[operation["life"]]
    rows = min(operation["rows"], life.prompt - life.length)
    if rows > 0:
        with run.timed("prefill"):
            _step(run, [life], rows, "prefill")


def decode(run: Run, operation: Operation) -> None:
    """Decode steps of some sequences of one client."""
    lives = [run.lives[number] for number in operation["lives"] if number in run.lives]
    steps = min(operation["steps"], *(life.admitted - life.length for life in lives))
    for _ in range(steps):
        with run.timed("decode"):
            _step(run, lives, 1, "decode")


def fork(run: Run, operation: Operation) -> None:
    """A copy of a beginning, which goes on as nobody else."""
    life, length = run.lives[operation["life"]], operation["length"]
    new = operation["max_new_tokens"]
    if length > life.length:
        return
    with run.timed("fork"):
        handle = run.session(life.client).fork(life.handle, length, new)
    child = life.fork(operation["child"], handle, length, new)
    run.lives[child.number] = child
    compare(run, child)


def truncate(run: Run, operation: Operation) -> None:
    """Tokens are taken back; the sequence goes on as before, or as nobody else."""
    life, length = run.lives[operation["life"]], operation["length"]
    if length > life.length:
        return
    with run.timed("truncate"):
        run.session(life.client).truncate(life.handle, length)
    keeps_name = length % 64 == 0 or length // 64 == life.length // 64
    if operation["goes_on_as_before"] and keeps_name:
        life.cut(length)
    else:
        life.branch(length, operation["branch"])
    compare(run, life)


def preempt(run: Run, operation: Operation) -> None:
    """A sequence rests."""
    life = run.lives[operation["life"]]
    with run.timed("preempt"):
        run.session(life.client).preempt(life.handle)
    life.rests = True


def resume(run: Run, operation: Operation) -> None:
    """A sequence comes back, with all its tokens unless a tier was made to lose some."""
    life = run.lives[operation["life"]]
    with run.timed("resume"):
        length = run.session(life.client).resume(life.handle)
    life.rests = False
    if length != life.length:
        _note_loss(run, life, length)
    compare(run, life)


def _note_loss(run: Run, life: Life, length: int) -> None:
    if length > life.length or length % 64 or not run.may_lose:
        run.counts.pages_lost += max(1, (life.length - length) // 64)
        what = f"sequence {life.number} had {life.length} tokens, has {length} after a rest"
        run.counts.remark(what)
    life.branch(min(length, life.length), -life.number)


def close(run: Run, operation: Operation) -> None:
    """The end of a sequence."""
    life = run.lives.pop(operation["life"])
    with run.timed("close"):
        run.session(life.client).close_sequence(life.handle)


def hang_up(run: Run, operation: Operation) -> None:
    """A client's sockets close in the middle of a step."""
    client = operation["client"]
    ready = [life for life in run.lives.values() if life.client == client and not life.rests]
    for life in ready[:1]:
        rows = min(3, life.admitted - life.length)
        if rows:
            session = run.session(client)
            tokens = life.text.tokens(life.length, rows)
            session.begin_step([(life.handle, rows)], "prefill", token_ids=tokens)
            links = life.links(life.length, rows)
            session.run_layer(0, layer_inputs(run.config, links, 0))
    run.end_session(client)


def _step(run: Run, lives: list[Life], rows: int, kind: StepKind) -> None:
    session = run.session(lives[0].client)
    tokens = [token for life in lives for token in life.text.tokens(life.length, rows)]
    links = [link for life in lives for link in life.links(life.length, rows)]
    for life in lives:
        run.oracle.expect(life, rows)
    session.begin_step([(life.handle, rows) for life in lives], kind, token_ids=tokens)
    for layer in range(run.config.model.num_layers):
        session.run_layer(layer, layer_inputs(run.config, links, layer))
    session.end_step()
    for life in lives:
        life.length += rows
        run.oracle.learn(life)
