"""Make the virtual environment that the Makefile works in: `python3 .ci/make_venv.py .venv STAMP`.

Rules: standard library only, and it must still parse on a Python too old for Solvisor, to say so in one line. The
system's own packages are never touched. `uv` does the work where it is installed; else `venv` and pip. Debian's
python3 can lack ensurepip (package python3-venv): then pip is fetched from the index that PIP_INDEX_URL names, checked
against the hash below, and installed into the new environment alone.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

OLDEST, NEWEST = (3, 11), (3, 13)
EXTRAS = ".[demo,dev]"
PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
CAPTURED = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


def main():
    """Make the environment argv[1] anew; write the stamp argv[2], a file in it, once it is complete."""
    folder, stamp = sys.argv[1:3]
    uv = shutil.which("uv")
    supported = OLDEST <= sys.version_info[:2] <= NEWEST
    if not supported and not uv:
        fail(
            f"{sys.executable} is Python {sys.version.split()[0]}; Solvisor needs 3.11 to 3.13. "
            "Install one of these and run, say: make PYTHON=python3.13"
        )
    started = time.monotonic()
    python = os.path.join(folder, "bin", "python")
    remove(folder)
    say(f"making {folder} with {uv or sys.executable}")
    create(folder, uv, sys.executable if supported else ">=3.11,<3.14")
    if uv:
        run([uv, "pip", "install", "--python", python, "--editable", EXTRAS])
    else:
        run([python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--editable", EXTRAS])
    with open(stamp, "w"):
        pass
    say(f"{folder} is ready ({time.monotonic() - started:.0f} s)")


def create(folder, uv, python):
    """A new environment with pip in it (with uv: without, uv needs none)."""
    if uv:
        run([uv, "venv", "--python", python, folder])
    elif subprocess.run([python, "-m", "venv", folder], **CAPTURED).returncode:
        remove(folder)
        run([python, "-m", "venv", "--without-pip", folder])
        with tempfile.TemporaryDirectory() as downloads:
            wheel = fetch_pip(downloads)
            # A wheel on the path runs in place: it installs itself, as ensurepip would.
            run([os.path.join(folder, "bin", "python"), os.path.join(wheel, "pip"), "install", "--no-index", wheel])


def fetch_pip(folder):
    """Download the pinned pip wheel from the package index into ``folder``; return its path."""
    index = os.environ.get("PIP_INDEX_URL", "").rstrip("/")
    if not index:
        fail(
            "this python3 has no ensurepip: install the package python3-venv, or uv, or set PIP_INDEX_URL to an index."
        )
    index += "/pip/"
    say(f"this python3 has no ensurepip: fetching {PIP_WHEEL} from {index}")
    try:
        with urllib.request.urlopen(index, timeout=60) as page:  # noqa: S310  the user names the index
            link = re.search('href="([^"]*/' + re.escape(PIP_WHEEL) + ')[#"]', page.read().decode())
        if not link:
            raise ValueError("it does not list that file")
        with urllib.request.urlopen(urllib.parse.urljoin(index, link.group(1)), timeout=60) as download:  # noqa: S310  as above
            content = download.read()
        if hashlib.sha256(content).hexdigest() != PIP_SHA256:
            raise ValueError("what it sent has another hash")
    except (OSError, ValueError) as error:
        fail(f"no pip from {index} ({error}). Install the package python3-venv (or uv), then run make again.")
    path = os.path.join(folder, PIP_WHEEL)
    with open(path, "wb") as file:
        file.write(content)
    return path


def remove(folder):
    """Remove an earlier environment; refuse to remove anything else."""
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, "pyvenv.cfg")):
        fail(f"{folder} exists and is no virtual environment; move it away, or choose another: make VENV=DIR")
    shutil.rmtree(folder, ignore_errors=True)


def run(argv):
    """Run quietly; on failure show all that was printed and end."""
    done = subprocess.run(argv, **CAPTURED)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        fail("failed: " + " ".join(argv))


def say(text):
    """One line of progress."""
    print(text, flush=True)


def fail(text):
    """End with one line."""
    sys.exit("error: " + text)


if __name__ == "__main__":
    main()
