"""Help, usage errors, and the shape of what every command writes."""

import pytest

from cli.command import run_hisparse
from hisparse_sidecar.cli import main
from hisparse_sidecar.cli.main import build_parser

COMMANDS = ("demo", "serve", "info", "bench", "tune", "stress")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])

    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: hisparse {command}" in shown
    assert "examples:" in shown
    assert "--json" in shown


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["info", "--no-such-flag"]])
def test_a_usage_error_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_every_command_says_what_runs_it() -> None:
    parser = build_parser()
    for command, required in (
        ("demo", []),
        ("serve", ["--socket", "s"]),
        ("info", []),
        ("bench", []),
        ("tune", []),
        ("stress", []),
    ):
        assert callable(parser.parse_args([command, *required]).run)


def test_a_failing_command_writes_one_line_to_stderr_and_nothing_to_stdout() -> None:
    done = run_hisparse("demo", "--json", "--model", "/no/such/model")

    assert done.exit_code == 1
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hisparse demo: ")
    assert "/no/such/model" in last
