"""Where this machine gets packages from: indexes, pages and folders.

Installers on the far side ask for projects and files, and are answered from here.  A file is
handed out only if a page of the index, or a folder, named it before; no request can name another.
Start at ``Sources``.
"""

from __future__ import annotations

import hashlib
import html
import re
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Lock
from typing import IO
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from .._clock import monotonic
from .requirements import digest_of

ACCEPT = "application/vnd.pypi.simple.v1+html;q=1, text/html;q=0.5"
PAGE_BYTES_MAX = 64 << 20
FILE_BYTES_MAX = 8 << 30
FILES_MAX = 1_000_000  # named in one installation
PIECE_BYTES = 1 << 18
FETCH_S = 60.0
SHORTEST_S = 0.1
CONFIG_S = 30.0
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}\.(?:whl|tar\.gz|zip|tar\.bz2|tgz)")
KEPT_ATTRIBUTES = (
    "data-requires-python", "data-dist-info-metadata", "data-core-metadata", "data-yanked",
)  # fmt: skip


def configured() -> dict[str, str]:
    """Return pip's configuration on this machine, by option; nothing if there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=CONFIG_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        match = re.fullmatch(r"(:env:|global|install)\.([a-z-]+)='(.*)'", line)
        if match and (match[1] == ":env:" or match[2] not in found):
            found[match[2]] = match[3].replace("\\n", " ")
    return found


def default_index() -> str:
    """Return the index that pip asks by default, "" if there is no pip."""
    from importlib import import_module

    try:
        url = import_module("pip._internal.models.index").PyPI.simple_url
    except (ImportError, AttributeError):
        return ""
    return str(url) + "/" * (not str(url).endswith("/"))


@dataclass
class File:
    """A file that installers may ask for."""

    name: str
    url: str
    digest: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


class Sources:
    """Pages and files, for installers elsewhere.

    local: wheels of this machine, which have the ids from 0 on.  links: folders and pages with
    files.  indexes: addresses.  deadline: when nobody waits any more, as ``monotonic``.  Any thread
    may call; ``_lock`` guards the files.
    """

    def __init__(
        self, local: list[Path], links: list[str], indexes: list[str], cert: str = ""
    ) -> None:
        self._files = [File(path.name, path.as_uri(), digest_of(path)) for path in local]
        self._ids = {file.url: number for number, file in enumerate(self._files)}
        self._links = links
        self._indexes = indexes
        self._cert = cert
        self.deadline = float("inf")
        self._lock = Lock()

    @property
    def has_index(self) -> bool:
        """Whether there is any index or folder to ask."""
        return bool(self._indexes)

    # pages

    def project_files(self, name: str) -> list[File]:
        """Return the files that the indexes have of a project, whose name is normalized here."""
        name = re.sub(r"[-_.]+", "-", name).lower()
        found: list[File] = []
        for index in self._indexes:
            found += self._page_files(f"{index.rstrip('/')}/{name}/")
        return found

    def link_files(self) -> list[File]:
        """Return the files that the folders and pages have."""
        found: list[File] = []
        for link in self._links:
            if "://" in link and not link.startswith("file:"):
                found += self._page_files(link)
                continue
            folder = Path(unquote(urlsplit(link).path) if "://" in link else link)
            paths = sorted(folder.iterdir()) if folder.is_dir() else [folder]
            for path in paths:
                if FILE_NAME.fullmatch(path.name) and path.is_file():
                    found.append(File(path.name, path.absolute().as_uri()))
        return found

    def page(self, files: list[File], up: str) -> bytes:
        """Return a page that names files; ``up`` leads to the parent of their folder."""
        lines = ["<!DOCTYPE html><html><body>"]
        for file in files:
            address = f"{up}file/{self._id_of(file)}/{file.name}"
            if file.digest:
                address += f"#sha256={file.digest}"
            words = "".join(f' {key}="{html.escape(value)}"' for key, value in file.attributes)
            lines.append(f'<a href="{address}"{words}>{file.name}</a><br>')
        lines.append("</body></html>")
        return "\n".join(lines).encode("utf-8")

    def _id_of(self, file: File) -> int:
        with self._lock:
            number = self._ids.get(file.url)
            if number is None:
                if len(self._files) >= FILES_MAX:
                    raise OSError("too many files are named")
                number = self._ids[file.url] = len(self._files)
                self._files.append(file)
            return number

    def _page_files(self, url: str) -> list[File]:
        try:
            with closing(self._open(url)) as response:
                data = _read(response, PAGE_BYTES_MAX + 1)
                base = response.url if isinstance(response, HTTPResponse) else url
        except urllib.error.HTTPError as exc:
            if exc.code in (403, 404, 410):
                return []
            raise
        except FileNotFoundError:
            return []
        if len(data) > PAGE_BYTES_MAX:
            raise OSError(f"{urlsplit(url).hostname}: a page of more than {PAGE_BYTES_MAX} bytes")
        return list(_files_of(data.decode("utf-8", "replace"), _with_userinfo(base, url)))

    # files

    def file(self, number: int, wants_metadata: bool) -> tuple[str, str]:
        """Return the digest and the address of a file named before, or raise LookupError."""
        with self._lock:
            file = self._files[number]
        if wants_metadata:
            head, _, query = file.url.partition("?")
            return "", f"{head}.metadata" + (f"?{query}" if query else "")
        if not file.digest and file.url.startswith("file:"):
            file.digest = digest_of(_path_of(file.url))
        return file.digest, file.url

    def pieces(self, url: str) -> Iterator[bytes]:
        """Yield the content of a file.  Raises OSError."""
        left = FILE_BYTES_MAX
        with closing(self._open(url)) as response:
            while piece := _read(response, PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise OSError(f"a file of more than {FILE_BYTES_MAX} bytes")
                yield piece

    def content(self, file: File) -> bytes:
        """Return a whole file; OSError if it is not the one that its digest says."""
        data = b"".join(self.pieces(file.url))
        if file.digest and hashlib.sha256(data).hexdigest() != file.digest:
            raise OSError(f"{file.name} is not what its digest says")
        return data

    def _open(self, url: str) -> IO[bytes] | HTTPResponse:
        if url.startswith("file:"):
            path = _path_of(url)
            return open(path / "index.html" if path.is_dir() else path, "rb")
        if urlsplit(url).scheme not in ("http", "https"):
            raise OSError(f"an index can't have an address with {urlsplit(url).scheme!r}")
        bare, authorization = _split_userinfo(url)
        request = urllib.request.Request(bare, headers={"Accept": ACCEPT})
        if authorization:  # unredirected: it does not go to another host
            request.add_unredirected_header("Authorization", authorization)
        context = None
        if self._cert and bare.startswith("https:"):
            import ssl

            context = ssl.create_default_context(cafile=self._cert)
        try:
            timeout_s = max(SHORTEST_S, min(FETCH_S, self.deadline - monotonic()))
            response: HTTPResponse = urllib.request.urlopen(
                request, timeout=timeout_s, context=context
            )
            return response
        except urllib.error.HTTPError as exc:
            exc.close()  # nobody reads its body
            raise
        except HTTPException as exc:
            raise OSError(f"{urlsplit(bare).hostname} does not speak HTTP: {exc!r}") from exc


def _read(response: IO[bytes] | HTTPResponse, size: int) -> bytes:
    try:
        return response.read(size)
    except HTTPException as exc:
        raise OSError(f"an answer was cut: {exc!r}") from exc


def _path_of(url: str) -> Path:
    return Path(urllib.request.url2pathname(urlsplit(url).path))


def _split_userinfo(url: str) -> tuple[str, str]:
    """Return an address without its secret, and the header that carries the secret."""
    parts = urlsplit(url)
    info, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    bare = urlunsplit(parts._replace(netloc=host))
    return bare, "Basic " + b64encode(unquote(info).encode("utf-8")).decode("ascii")


def _with_userinfo(base: str, url: str) -> str:
    """Return an address with the secret of the page that named it, if on the same host."""
    info, at, host = urlsplit(url).netloc.rpartition("@")
    parts = urlsplit(base)
    if not at or parts.netloc != host:
        return base
    return urlunsplit(parts._replace(netloc=f"{info}@{host}"))


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        if tag == "base" and not self.base:
            self.base = attributes.get("href", "")
        elif tag == "a" and "href" in attributes:
            self.found.append(attributes)


def _files_of(text: str, url: str) -> Iterator[File]:
    """Yield the files that a page names; a page from elsewhere can't name local files."""
    parser = _Anchors()
    parser.feed(text)
    base = urljoin(url, parser.base)
    allowed = ("file",) if url.startswith("file:") else ("http", "https")
    for attributes in parser.found:
        address, fragment = urldefrag(urljoin(base, attributes["href"].strip()))
        name = unquote(urlsplit(address).path.rpartition("/")[2])
        if not FILE_NAME.fullmatch(name) or urlsplit(address).scheme not in allowed:
            continue
        digest = re.search(r"(?:^|&)sha256=([0-9a-f]{64})(?:&|$)", fragment)
        kept = tuple((key, attributes[key]) for key in KEPT_ATTRIBUTES if key in attributes)
        yield File(name, _with_userinfo(address, base), digest[1] if digest else "", kept)
