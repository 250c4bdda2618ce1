"""What we replace and rely on in SGLang is as we know it, in both versions that we support."""

import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang.pool.pool_hooks import POOL_TARGETS
from hisparse_sidecar.engines.sglang.prefix.targets import PREFIX_TARGETS, check_prefix_version
from hisparse_sidecar.engines.sglang.start_checks import START_TARGETS
from hisparse_sidecar.engines.sglang.targets import ALL_TARGETS, Target, parameters_of
from hisparse_sidecar.engines.sglang.versions import NEWEST, OLDEST, check_sglang
from hisparse_sidecar.errors import InvalidArgument
from tools.sglang_signatures import signature_in

FOLDER = Path(__file__).parent


def test_the_oldest_version_has_every_target() -> None:
    """By its sources; made again by `python -m tools.sglang_signatures FOLDER`."""
    found = json.loads((FOLDER / f"signatures-{OLDEST}.json").read_text())
    targets = (*ALL_TARGETS, *START_TARGETS, *POOL_TARGETS, *PREFIX_TARGETS)
    assert set(found) == {target.path for target in targets}
    assert [line for t in targets if (line := t.difference(found[t.path])) is not None] == []


def test_a_difference_names_what_was_found_and_needed() -> None:
    target = Target("m", "C.f", ("(self, a)", "(self, a, b=)"))
    assert target.difference("(self, a)") is None
    assert target.difference(None) == "m.C.f is missing"
    assert target.difference("(self, c)") == "m.C.f is (self, c), needs (self, a) or (self, a, b=)"
    fields = Target("m", "D", ("x", "y"))
    assert fields.difference("x, z, y") is None
    assert fields.difference("z, y") == "m.D lacks x"


def functions() -> dict[str, Any]:
    class C:
        def plain(self, a, b=1, *, c, d=None):
            pass

        def rest(self, *args, e, **named):
            pass

        @classmethod
        def bound(cls, a):
            pass

    return {"plain": C.plain, "rest": C.rest, "bound": C.bound}


def test_sources_and_the_running_program_write_signatures_alike(tmp_path: Path) -> None:
    source = inspect.getsource(functions)
    (tmp_path / "module.py").write_text("if True:\n" + textwrap.indent(source, "    "))
    for name, function in functions().items():
        target = Target("module", f"functions.C.{name}", ("()",))
        assert signature_in(tmp_path, target) == parameters_of(inspect.signature(function))
    assert signature_in(tmp_path, Target("module", "functions.C.none", ("()",))) is None
    assert signature_in(tmp_path, Target("other", "f", ("()",))) is None


@pytest.mark.parametrize("found", [OLDEST, NEWEST, "0.5.20", "0.5.17.post1", "0.5.23+cu130"])
def test_versions_of_the_range_are_supported(found: str) -> None:
    check_sglang(found)


@pytest.mark.parametrize("found", ["0.5.16", "0.5.24", "0.6.0", "1.0.0", "unknown"])
def test_another_version_is_refused_with_the_range(found: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{found}.*needs {OLDEST} to {NEWEST}"):
        check_sglang(found)


@pytest.mark.parametrize("found", [OLDEST, NEWEST, "0.5.23+cu130"])
def test_the_prefix_cache_knows_both_ends_of_the_range(found: str) -> None:
    check_prefix_version(found)


def test_the_prefix_cache_refuses_what_lies_between() -> None:
    with pytest.raises(InvalidArgument, match=f"is 0.5.20, .* needs {OLDEST} or {NEWEST}"):
        check_prefix_version("0.5.20")
