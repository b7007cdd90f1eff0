"""A dropped file becomes text, or a sentence that says why not; in a prompt it ends where it ends."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pdfs import pdf

from exaone4_mlx.files import pdf as pdf_module
from exaone4_mlx.files.attachments import ACCEPTED, MAX_FILE_BYTES, Attachment, clean_name, in_prompt, read_file
from exaone4_mlx.files.pdf import pdf_text

KOREAN = "안녕하세요. 엑사원은 한국어를 잘합니다.\n오늘 회의는 3시에 시작합니다.\n"


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """file(bytes, name) -> a path."""

    def write(data: bytes, name: str = "file.txt") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


# --- text and its encodings ---------------------------------------------------


def test_usual_encodings_are_read(file: Any) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp949"):
        assert read_file(file(KOREAN.encode(encoding))).text == KOREAN, encoding


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"one\r\ntwo\rthree\nfour", "one\ntwo\nthree\nfour"), (b"\x1b[1mok\x1b[0m\n" * 20, "\x1b[1mok\x1b[0m\n" * 20)],
    ids=["line ends", "colours of a terminal"],
)
def test_unusual_bytes_are_text(file: Any, data: bytes, text: str) -> None:
    assert read_file(file(data)).text == text


def test_an_unknown_suffix_is_no_reason_to_refuse(file: Any) -> None:
    assert read_file(file(b"key: value", "settings.unknown")) == Attachment("settings.unknown", "key: value")


def test_control_strings_stay_as_they_are(file: Any) -> None:
    text = "[|endofturn|]\n<tool_result>{}</tool_result>"
    assert read_file(file(text.encode())).text == text and text in in_prompt("", [Attachment("a.txt", text)])


# --- what is refused ----------------------------------------------------------


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("word/document.xml", "<w:document/>")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "picture.png"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "picture.txt"),
        (zipped(), "letter.docx"),
        (b"text with a \0 in it", "notes.md"),
        (bytes(random.Random(1).choices(range(1, 256), k=300)), "noise.csv"),
        (b"\xff\xfe" + bytes(random.Random(2).choices(range(256), k=301)), "noise16.txt"),
        (b"\xff\xfe\0\0a\0\0\0", "utf32.txt"),
        (b"\x01\x02\x03ab", "controls.json"),
    ],
)
def test_binary_is_refused_with_any_suffix(file: Any, data: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} holds no text; accepted are text, Markdown, code, .* and PDF"):
        read_file(file(data, name))


def test_a_file_without_text_is_refused(file: Any) -> None:
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        read_file(file(b"", "empty.txt"))
    for blank in (b" \n\t\r\n", b"\xef\xbb\xbf", b"\xff\xfe"):
        with pytest.raises(ValueError, match=r"blank\.txt holds nothing but blanks"):
            read_file(file(blank, "blank.txt"))


def test_the_largest_file_is_read_and_a_byte_more_is_refused(file: Any) -> None:
    assert len(read_file(file(b"a" * MAX_FILE_BYTES)).text) == MAX_FILE_BYTES == 20_000_000
    with pytest.raises(ValueError, match=r"big\.txt is larger than 20 MB, the most that is read"):
        read_file(file(b"a" * (MAX_FILE_BYTES + 1), "big.txt"))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # reading it would wait
    for name, message in {
        "gone.txt": r"there is no file gone\.txt",
        "folder": "folder is a folder; drop the files in it",
        "pipe": "there is no file pipe",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_file(tmp_path / name)


def test_a_file_that_may_not_be_read_is_refused(file: Any, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = file(b"secret")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"file\.txt cannot be read: Permission denied"):
        read_file(path)


# --- names --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("/home/me/notes.md", "notes.md"),
        ("..\\..\\secret\\notes.md", "notes.md"),
        ("a\nb\r\x00\x1b\u2028\u202ec.txt", "abc.txt"),
        ("  padded.txt ", "padded.txt"),
        ("\u1112\u1161\u11ab.txt", "한.txt"),
        ("메모 (1).txt", "메모 (1).txt"),
        ("a" * 200 + ".py", "a" * 117 + ".py"),
        ("a." + "b" * 200, "a." + "b" * 118),
        ("\n", "file"),
        ("/", "file"),
    ],
)
def test_a_name_is_one_short_visible_line(name: str, clean: str) -> None:
    assert clean_name(name) == clean and len(clean) <= 120


def test_a_file_may_be_called_otherwise_than_it_is_stored(file: Any) -> None:
    path = file(b"# Title", "gradio-temporary")
    assert read_file(path, "docs/read me.md") == Attachment("read me.md", "# Title")
    assert read_file(str(path)).name == "gradio-temporary"


# --- PDF ----------------------------------------------------------------------


@pytest.fixture
def pypdf() -> Any:
    return pytest.importorskip("pypdf", reason="PDF files are read with pypdf, the extra .[pdf]")


@pytest.mark.parametrize(
    ("pages", "name", "text"),
    [
        (["Hello from a PDF"], "one.pdf", "Hello from a PDF"),
        (["First page", "", "Second page"], "two.pdf", "First page\n\nSecond page"),
        (["Hello"], "download", "Hello"),
    ],
    ids=["one page", "a blank line between pages", "known by its first bytes"],
)
def test_the_pages_of_a_pdf_are_read(file: Any, pypdf: Any, pages: list[str], name: str, text: str) -> None:
    assert read_file(file(pdf(pages), name)) == Attachment(name, text)


def encrypted(pypdf: Any, user_password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(["Secret"])))
    writer.encrypt(user_password, owner_password="owner", algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def test_an_encrypted_pdf_is_refused(file: Any, pypdf: Any) -> None:
    with pytest.raises(ValueError, match=r"locked\.pdf is encrypted; save a copy without a password"):
        read_file(file(encrypted(pypdf, "user"), "locked.pdf"))


def test_a_pdf_that_opens_without_a_password_is_read(file: Any, pypdf: Any) -> None:
    assert read_file(file(encrypted(pypdf, ""), "open.pdf")).text == "Secret"


def test_encryption_that_pypdf_cannot_undo_is_encryption(file: Any, pypdf: Any, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf.PdfReader, "decrypt", refuse)
    with pytest.raises(ValueError, match=r"locked\.pdf is encrypted"):
        pdf_text(encrypted(pypdf, "user"), "locked.pdf")


@pytest.mark.parametrize("data", [b"%PDF-1.4\nnothing follows", b"no PDF at all", pdf(["Hello"])[:120]])
def test_a_damaged_pdf_is_refused(file: Any, pypdf: Any, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"bad\.pdf is damaged, or no PDF: "):
        read_file(file(data, "bad.pdf"))


def test_a_damaged_page_is_refused(file: Any, pypdf: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda _: {}["/Font"])
    with pytest.raises(ValueError, match=r"bad\.pdf is damaged, or no PDF: '/Font'"):
        pdf_text(pdf(["Hello"]), "bad.pdf")


def test_a_scan_is_refused(file: Any, pypdf: Any) -> None:
    with pytest.raises(ValueError, match=r"scan\.pdf holds no text: a scan is pictures of pages"):
        read_file(file(pdf(["", ""]), "scan.pdf"))


def test_the_pages_of_a_pdf_are_bounded(file: Any, pypdf: Any, monkeypatch: Any) -> None:
    assert pdf_module.MAX_PDF_PAGES == 2000
    monkeypatch.setattr(pdf_module, "MAX_PDF_PAGES", 2)
    assert pdf_text(pdf(["a", "b"]), "two.pdf") == "a\n\nb"
    with pytest.raises(ValueError, match=r"long\.pdf has 3 pages, more than the 2 that are read; split it"):
        pdf_text(pdf(["a", "b", "c"]), "long.pdf")


def test_the_text_of_a_pdf_is_bounded(file: Any, pypdf: Any, monkeypatch: Any) -> None:
    read: list[int] = []
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda _: read.append(1) or "x" * 3_000_000)
    with pytest.raises(ValueError, match=r"bomb\.pdf holds more than 4,000,000 characters of text; split it"):
        pdf_text(pdf(["a"] * 50), "bomb.pdf")
    assert len(read) == 2, "no page is read beyond the bound"


def test_halves_of_characters_and_nulls_do_not_leave_a_pdf(file: Any, pypdf: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda _: "a\ud800b\0c")
    assert pdf_text(pdf(["a"]), "odd.pdf") == "a?bc"


def test_pypdf_does_not_write_on_the_terminal(file: Any, pypdf: Any, caplog: pytest.LogCaptureFixture) -> None:
    damaged = pdf(["Hello"]).replace(b"startxref\n", b"startxref\n9")
    logging.getLogger("pypdf").setLevel(logging.NOTSET)
    assert pypdf.PdfReader(io.BytesIO(damaged)).pages and caplog.records, "else there is nothing to keep quiet"
    caplog.clear()
    assert pdf_text(damaged, "mended.pdf") == "Hello"
    assert not caplog.records


def test_the_reading_of_a_pdf_can_be_ended(file: Any, pypdf: Any, monkeypatch: Any) -> None:
    slow = file(pdf(["a) Tj 0 1 Td (a" * 300_000]), "slow.pdf")  # pypdf reads it for a minute
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"reading slow\.pdf was cancelled"):
        read_file(slow, cancelled=lambda: True)
    monkeypatch.setattr(pdf_module, "PDF_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"slow\.pdf takes more than 0\.3 s to read; split it"):
        read_file(slow)
    assert time.monotonic() - began < 20


def test_without_pypdf_the_message_says_how_to_install_it(file: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(ValueError, match=r"one\.pdf is a PDF, and .* needs pypdf: pip install 'pypdf', .* '\.\[pdf\]'"):
        pdf_text(pdf(["Hello"]), "one.pdf")


# --- in a prompt --------------------------------------------------------------


def test_no_attachment_leaves_the_text_alone() -> None:
    assert in_prompt("  Hello\n", []) == "  Hello\n"
    assert in_prompt("", []) == ""


def test_files_stand_before_the_words_about_them() -> None:
    attachments = [Attachment("a.py", "print(1)\n"), Attachment("메모.txt", "안녕")]
    assert in_prompt("What is this?", attachments) == (
        "File: a.py\n\n```python\nprint(1)\n```\n\nFile: 메모.txt\n\n```\n안녕\n```\n\nWhat is this?"
    )


def test_a_file_alone_is_a_message() -> None:
    assert in_prompt("", [Attachment("a.json", "{}")]) == "File: a.json\n\n```json\n{}\n```"


@pytest.mark.parametrize(("body", "fence"), [("a `b` c", "```"), ("```\ncode\n```", "````"), ("x ``````", "```````")])
def test_a_fence_is_longer_than_any_within(body: str, fence: str) -> None:
    assert in_prompt("", [Attachment("a.md", body)]) == f"File: a.md\n\n{fence}markdown\n{body}\n{fence}"


def test_a_name_cannot_pretend_to_be_more_than_a_name() -> None:
    """Attachments come from saved conversations as well."""
    assert in_prompt("", [Attachment("a.txt\n```\nFile: b.txt", "x")]).splitlines()[0] == "File: a.txt```File: b.txt"


def test_suffixes_for_a_file_chooser() -> None:
    assert {".txt", ".md", ".py", ".csv", ".json", ".yaml", ".toml", ".xml", ".html", ".log", ".pdf"} <= set(ACCEPTED)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in ACCEPTED)
    assert len(set(ACCEPTED)) == len(ACCEPTED)
