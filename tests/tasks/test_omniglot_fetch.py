import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fewstep.errors import BadInput
from fewstep.tasks import omniglot_fetch
from fewstep.tasks.omniglot import fetch

CONTENT = {"images_background.zip": b"background" * 1000, "images_evaluation.zip": b"evaluation" * 1000}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The two files over loopback, with checksums to match."""
    monkeypatch.setattr(
        omniglot_fetch,
        "CHECKSUMS",
        {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in CONTENT.items()},
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def test_both_files_arrive_and_are_kept_the_second_time(server, tmp_path):
    lines = []
    fetch(tmp_path / "new" / "folder", lines.append, server)
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()} == CONTENT
    assert "10,000 bytes, checksum right" in lines[1]
    lines.clear()
    fetch(tmp_path / "new" / "folder", lines.append, "http://127.0.0.1:1")
    assert [line.rpartition(": ")[2] for line in lines] == ["already there, checksum right"] * 2


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    (tmp_path / "served" / "images_evaluation.zip").write_bytes(b"an error page")
    with pytest.raises(BadInput, match=r"images_evaluation.zip came with md5 .* nothing was kept: try again"):
        fetch(tmp_path / "out", lambda _: None, server)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images_background.zip"]


def test_a_foreign_file_in_the_way_is_not_overwritten(server, tmp_path):
    (tmp_path / "images_background.zip").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"is there already but is not the authors' file .* move it away"):
        fetch(tmp_path, lambda _: None, server)
    assert (tmp_path / "images_background.zip").read_bytes() == b"mine"


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_no_network_says_what_to_do_by_hand(server, tmp_path, path):
    url = server + path if path else "http://127.0.0.1:1"
    with pytest.raises(BadInput, match=rf"cannot download {url}/images_background.zip \(.*bring the file from another"):
        fetch(tmp_path / "out", lambda _: None, url)
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match=r"cannot make the folder .*file/sub"):
        fetch(tmp_path / "file" / "sub")


def test_the_real_checksums_and_address():
    assert omniglot_fetch.BASE_URL == "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    assert omniglot_fetch.CHECKSUMS == {
        "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    }
