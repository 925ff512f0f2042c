"""The pages of the documentation: links, files and commands."""

from pathlib import Path

import pytest

import docs


@pytest.mark.parametrize("page", docs.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = docs.PAGES[page]
    for link in docs.links(path.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (path.parent / target) if target else path
        assert file.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in docs.anchors(file.read_text()), f"{page}: {link}"


@pytest.mark.slow
@pytest.mark.parametrize("page", docs.PAGES)
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = docs.Reader(tmp_path)
    for step in docs.steps(docs.PAGES[page].read_text()):
        reader.take(step)
