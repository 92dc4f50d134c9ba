"""A prompt that changes makes another knowledge base and another discovery, whichever it is."""

from __future__ import annotations

from types import ModuleType

import pytest

from fgvr.agents import discover_prompts, prompts


def constants(module: ModuleType) -> list[str]:
    """Whatever holds words, by any name: a new prompt is in the fingerprint, or fails here."""
    named = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    return [name for name, value in named.items() if isinstance(value, str | tuple | list | dict)]


@pytest.mark.parametrize("module", [prompts, discover_prompts])
def test_every_prompt_is_in_the_fingerprint(module, monkeypatch):
    known = {module.fingerprint()}
    names = constants(module)
    assert len(names) >= 4
    for name in names:
        with monkeypatch.context() as patch:
            value = getattr(module, name)
            patch.setattr(module, name, "other words" if isinstance(value, str) else type(value)())
            assert module.fingerprint() not in known, f"{name} is forgotten"
            known.add(module.fingerprint())
    assert module.fingerprint() in known


def test_discovery_also_depends_on_the_prompts_it_shares_with_a_base(monkeypatch):
    before = discover_prompts.fingerprint()
    monkeypatch.setattr(prompts, "_DESCRIBE_IMAGE", "Describe this {superclass}.")
    assert discover_prompts.fingerprint() != before
