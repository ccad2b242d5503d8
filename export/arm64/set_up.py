"""Makes the emulated Arm64 machine: an emulator, a Python and its libraries from Debian, the old TFLite runtime from Python's package index.

Nothing is installed and no root is needed: apt works in a folder of its own, with this system's sources asked for Debian 12, whose packages are
unpacked. Debian's signatures and the digests below say that what came is what was meant.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mcompress.errors import DeviceError, MissingBackendError
from mcompress.export.arm64.emulation import MARK, NUMPY, PACKAGES, QEMU, RECIPE, ROOT, RUNTIME, Answer, Emulation, Mark, mark_of
from mcompress.targets.connect.interface import Done
from mcompress.targets.connect.processes import last_words, run_process

RELEASE = "bookworm"
"""Debian 12, the release whose Python is 3.11, for which the runtime was built last."""
PARTS = ("", "-updates", "-security")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
EMULATOR = "qemu-user-static"
LIBRARIES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    *("libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libffi8"),
)
"""Of arm64: Python, and what it, numpy and the runtime are linked with."""
REQUIREMENTS = (
    f"tflite-runtime=={RUNTIME} --hash=sha256:ce9fa5d770a9725c746dcbf6f59f3178233b3759f09982e8b2db8d2234c333b0",
    f"numpy=={NUMPY} --hash=sha256:7ab55401287bfec946ced39700c053796e7cc0e3acbef09993a9ad2adba6ca6e",
)
PLATFORMS = ("manylinux_2_34_aarch64", "manylinux2014_aarch64")
TIMEOUT_S = 600.0
CORE = "cortex-a72"
DEBIAN_ONLY = "it is made from Debian's packages; set it up in a Debian container, and name the folder in MCOMPRESS_ARM64"


def set_up(folder: Path) -> Emulation:
    """Make the emulation in `folder` as a whole; one that is there already and complete is left as it is.

    Raises `MissingBackendError` where this system is not Debian's or lacks a program, `DeviceError` if something could not be fetched or does not
    work, `OSError` if the disk is full. What was there before stays until the new one works.
    """
    mark = mark_of(folder)
    if mark is not None and mark.recipe == RECIPE:
        return Emulation(folder)
    _check_system()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        names = _fill(made)
        _try_out(Emulation(made))
        (made / MARK).write_text(Mark(recipe=RECIPE, packages=names).model_dump_json(indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Emulation(folder)


def _check_system() -> None:
    missing = [name for name in ("apt-get", "dpkg-deb", "dpkg") if shutil.which(name) is None]
    if missing or not KEYRING.is_file():
        what = f"the program {missing[0]}" if missing else f"Debian's keys ({KEYRING})"
        raise MissingBackendError(f"the emulated Arm64 cannot be set up: this system lacks {what}, and {DEBIAN_ONLY}")


def _fill(made: Path) -> tuple[str, ...]:
    """Everything into a new folder; returns the names of the Debian packages."""
    work = made / "work"
    packages = _debian_packages(work)
    for package in packages:
        if package.name.startswith(f"{EMULATOR}_"):
            _take_emulator(package, made / QEMU)
        else:
            _run(["dpkg-deb", "-x", str(package), str(made / ROOT)], "unpacking")
    wanted = work / "requirements.txt"
    wanted.write_text("".join(f"{line}\n" for line in REQUIREMENTS), encoding="utf-8")
    # --target with --platform takes wheels only, and unpacks them; nothing of them runs here.
    chosen = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", *(f"--platform={one}" for one in PLATFORMS)]
    told = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--require-hashes", "-r", str(wanted)]
    _run([sys.executable, "-m", "pip", "install", "--target", str(made / PACKAGES), *chosen, *told], "fetching the runtime")
    shutil.rmtree(work)
    return tuple(package.name for package in packages)


def _debian_packages(work: Path) -> list[Path]:
    """Download them into `work` with an apt of our own. They are authenticated by Debian's keys."""
    fetched = work / "fetched"
    for name in (fetched, work / "lists" / "partial", work / "archives" / "partial", work / "sources"):
        name.mkdir(parents=True)
    architecture = _run(["dpkg", "--print-architecture"], "asking for the architecture").stdout.strip()
    targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"], "asking for apt's sources")
    sources = debian_sources(targets.stdout.splitlines(), platform.freedesktop_os_release().get("VERSION_CODENAME", RELEASE))
    if not sources:
        raise MissingBackendError(f"the emulated Arm64 cannot be set up: apt has no sources of Debian's main archive here, and {DEBIAN_ONLY}")
    (work / "sources" / "debian.list").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
    (work / "status").write_text("", encoding="utf-8")
    (work / "apt.conf").write_text(_configuration(work, architecture), encoding="utf-8")
    apt = ["apt-get", "-q", "-c", str(work / "apt.conf")]
    update = run_process("apt", [*apt[:1], "update"], [*apt, "update"], timeout_s=TIMEOUT_S)
    wanted = [f"{EMULATOR}:{architecture}", *(f"{name}:arm64" for name in LIBRARIES)]
    try:
        _run([*apt, "download", *wanted], "fetching Debian's packages", folder=fetched)
    except DeviceError as error:
        before = "" if update.rc == 0 else f" Before that, `apt-get update` failed: {last_words(update)}"
        raise DeviceError(f"{error}{before}") from error
    return sorted(fetched.glob("*.deb"))


def debian_sources(targets: Iterable[str], codename: str) -> list[str]:
    """Lines of a sources.list for Debian 12, from `URI|release|component` of this system's sources; `codename` is of its own release.

    A mirror that has the system's release has Debian 12 as well; other archives (of other components, releases or keys) are left out.
    """
    found: dict[str, None] = {}
    for target in targets:
        uri, release, component = (*target.strip().split("|"), "", "")[:3]
        part = next((part for part in PARTS if release in (f"{codename}{part}", f"{RELEASE}{part}")), None)
        if part is not None and component == "main":
            found[f"deb [signed-by={KEYRING}] {uri} {RELEASE}{part} main"] = None
    return list(found)


def _configuration(work: Path, architecture: str) -> str:
    both = "".join(f' "{name}";' for name in dict.fromkeys((architecture, "arm64")))
    lines = (
        f'Dir::State "{work}"; Dir::State::lists "{work}/lists"; Dir::State::status "{work}/status";',
        f'Dir::Cache "{work}"; Dir::Cache::archives "{work}/archives";',
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{work}/sources"; Dir::Etc::preferencesparts "/dev/null";',
        f'APT::Architecture "{architecture}";',
        "#clear APT::Architectures;",
        f"APT::Architectures {{{both} }};",
        'Acquire::Languages "none"; Acquire::Retries "3"; APT::Sandbox::User "root";',  # apt's own user cannot write into a user's folder
        "#clear APT::Update::Post-Invoke;",  # these tidy up the system's lists, which are not touched
        "#clear APT::Update::Post-Invoke-Success;",
    )
    return "".join(f"{line}\n" for line in lines)


def _take_emulator(package: Path, destination: Path) -> None:
    """One program of the hundred in the package."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacking:
        if unpacking.stdout is not None:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() and Path(member.name).name == QEMU else None
                    if content is not None:
                        with destination.open("wb") as program:
                            shutil.copyfileobj(content, program)
    if not destination.is_file():
        raise DeviceError(f"{package.name} holds no {QEMU}; Debian's package has changed, and this mcompress does not know it")
    destination.chmod(0o755)


def _try_out(emulation: Emulation) -> None:
    answer = emulation.ask(
        {"packages": str(emulation.folder / PACKAGES), "file": "", "kernels": "builtin", "inputs": [], "outputs": []},
        core=CORE,
        what="the new emulation",
        timeout_s=TIMEOUT_S,
    )
    if not isinstance(answer, Answer):
        raise DeviceError(f"the emulated Arm64 was set up, and its Python does not start the runtime ({answer})")


def _run(command: Sequence[str], what: str, folder: Path | None = None) -> Done:
    done = run_process(what, command, command, timeout_s=TIMEOUT_S, folder=folder)
    if done.rc != 0:
        raise DeviceError(f"the emulated Arm64 cannot be set up: {what} failed, and `{' '.join(command[:3])}` said: {last_words(done)}")
    return done
