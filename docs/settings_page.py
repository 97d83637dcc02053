"""Write docs/settings.md anew, from the settings model and the comments of config/proxy.toml.

    make settings-page

What a key takes, its default and its variable are the model's; what it means is said in
config/proxy.toml and nowhere else. A test compares the page with both.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ByteSize

from proxy.settings.credentials import CREDENTIAL_VARIABLES
from proxy.settings.model import (
    ALLOWED,
    Lines,
    SettingsModel,
    Texts,
    UpstreamSettings,
    variable,
)
from proxy.settings.reload import KEYS, SECTIONS, UPSTREAM_KEYS
from proxy.settings.sources import PLAIN_VARIABLES

DOCS = Path(__file__).parent
PAGE = DOCS / "settings.md"
FILE = DOCS.parent / "config/proxy.toml"

HEAD = """\
# Settings

<!-- written by `make settings-page` from proxy/settings/model.py and config/proxy.toml: change those -->

A flag wins over the environment, the environment over the settings file, the file over the default.

```sh
nomba-proxy check --show     # what is in force, and where each value came from
nomba-proxy check            # what is wrong, all of it at once
```

- The file is TOML: `nomba-proxy serve --config FILE`, or `NOMBA_PROXY_CONFIG`. [config/proxy.toml](../config/proxy.toml) has every
  key with its default, ready to be changed.
- The variable of a key is `NOMBA_PROXY_`, its section, its name. Lists are separated by commas there, some by lines.
- `--set KEY=VALUE` sets any key for one run: `--set log.level=debug`.
- Times are seconds; sizes are written as `64MiB`, `1MB` or plain bytes.
- *On reload* says what SIGHUP and `POST /-/reload` do ([admin listener](admin.md)): take a new value over, or leave it for the
  next start. Files that are watched need no reload.

## Credentials

From the environment, from a file that it names (`…_FILE`: nothing else in it, one newline at its end is removed), or from a file of
the variable's name in `$CREDENTIALS_DIRECTORY` (systemd). Never from a flag; secrets never from the settings file.

"""
OWN = {
    "NOMBA_PROXY_CALLERS_SIGNING_KEY": "`callers.signing_key_file`, as a value",
    "NOMBA_PROXY_STORE_PASSWORD": "`store_password_file`, as a value",
    "NOMBA_PROXY_ADMIN_TOKEN": "`admin.token_file`, as a value",
}
MEANT = {
    "client_id": "`upstream.client_id`",
    "client_secret": "the client secret (`upstream.client_secret_file` names a file)",
    "client_secret_next": "the secret that is to replace it ([how](scaling.md#changing-the-client-secret))",
    "account_id": "`upstream.account_id`, the parent account",
    "base_url": "`upstream.base_url`",
    "environment": "`upstream.environment`",
}
# Files that are read again when they change.
WATCHED = {
    "callers.file",
    *(f"tls.{key}" for key in ("cert_file", "key_file", "client_ca_file")),
    *("upstream.0.client_secret_file", "upstream.0.client_secret_next_file"),
}


@dataclass
class Section:
    """A part of the file.

    Attributes:
        name: of the section; "" for the keys above all sections.
        about: what is said of all of it.
        groups: keys that are explained together, with the words.
    """

    name: str
    about: str = ""
    groups: list[tuple[list[str], str]] = field(default_factory=list)


def read(text: str) -> list[Section]:
    """The sections of the annotated file."""
    sections = [Section("")]
    words: list[str] = []
    names: list[str] = []
    flag = ""

    def close() -> None:
        nonlocal flag
        if names:
            sections[-1].groups.append((list(names), " ".join(words) + flag))
        words.clear()
        names.clear()
        flag = ""

    for line in text.partition("\n\n")[2].splitlines():
        if heading := re.fullmatch(r"\[+(\w+)\]+", line):
            about, words[:] = (" ".join(words), []) if not names else ("", words)
            close()
            sections.append(Section(heading[1], about))
        elif key := re.match(r"# (\w+) = ", line):
            names.append(key[1])
            flag = flag or _flag(line)
        elif line.startswith("#"):
            if names:
                close()
            plain, _, _ = line.removeprefix("#").partition("   flag: ")
            words.append(plain.strip())
            flag = _flag(line) or flag
        elif not line and names:
            close()
    close()
    return sections


def _flag(line: str) -> str:
    found = re.search(r"  (?:# )?flag: (--[^()]+?)(?: \(repeatable\))?$", line)
    return f" Flag: `{found[1]}`." if found else ""


def row(section: str, key: str, words: str) -> str:
    """One key."""
    model: Any = UpstreamSettings if section == "upstream" else SettingsModel
    if section and section != "upstream":
        model = type(SettingsModel.model_fields[section].default)
    dotted = f"{section}.0.{key}" if section == "upstream" else f"{section}.{key}".strip(".")
    info = model.model_fields[key]
    cells = (
        f"`{key}`<br>`{variable(dotted)}`",
        shown(info.default),
        ALLOWED.get(dotted) or takes(key, info, section=section),
        linked(words),
        on_reload(section, key, dotted),
    )
    return f"| {' | '.join(cells)} |\n"


def shown(value: object) -> str:
    """A default."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(separator='').replace('.0', '')}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, tuple):
        return f"`{', '.join(value)}`" if value else "none"
    return "unset" if value is None else f"`{value}`"


def takes(key: str, info: Any, *, section: str) -> str:
    """What a key may be set to."""
    kind = info.annotation
    limits = _limits(info.metadata)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{one}`" for one in get_args(kind))
    if kind is bool:
        return "`true` or `false`"
    if kind is float:
        return f"{'a share' if limits.endswith(', at most 1') else 'seconds'}{limits}"
    if kind is int:
        return f"a whole number{limits}"
    if get_origin(kind) is tuple or kind in {Texts, Lines}:
        lines = key in {"patterns", "faults"}
        return "a list; in the environment one a line" if lines else "a list"
    for ending, what in (("_file", "a file"), ("_dir", "a folder"), ("listen", "`host:port`")):
        if key.endswith(ending) or key == ending.strip("_"):
            unix = section == "admin" and key == "listen"
            return "`host:port` or `unix:///path`" if unix else what
    return "a text"


def _limits(metadata: list[Any]) -> str:
    found = {
        name: f"{getattr(one, name):,}"
        for one in metadata
        for name in ("gt", "ge", "le")
        if getattr(one, name, None) is not None
    }
    words = [f"above {found['gt']}"] if "gt" in found else []
    words += [f"{found['ge']} or more"] if "ge" in found else []
    words += [f"at most {found['le']}"] if "le" in found else []
    return "".join(f", {one}" for one in words)


def on_reload(section: str, key: str, dotted: str) -> str:
    """Whether a running proxy takes a new value over."""
    taken = section in SECTIONS or key in KEYS.get(section, ())
    taken |= section == "upstream" and key in UPSTREAM_KEYS
    watched = "; the file is watched" if dotted in WATCHED else ""
    if dotted == "store_password_file":
        watched = "; the file is read at each connection"
    return f"{'taken over' if taken else 'restart'}{watched}"


def linked(words: str) -> str:
    """Words whose pages can be followed."""
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](\1.md)", words)


def credentials() -> str:
    """The variables that are no keys."""
    text = "| variable | what it is |\n| --- | --- |\n"
    for key, names in CREDENTIAL_VARIABLES.items():
        also = ", each also" if names[1:] else ", also"
        text += f"| {' or '.join(f'`{one}`' for one in names)}{also} `…_FILE` | {MEANT[key]} |\n"
    for key, name in PLAIN_VARIABLES.items():
        text += f"| `{name}` | {MEANT[key]} |\n"
    for name, meant in OWN.items():
        text += f"| `{name}`, also `…_FILE` | {meant} |\n"
    return text


def page() -> str:
    """The whole page."""
    text = HEAD + credentials()
    for section in read(FILE.read_text()):
        several = section.name == "upstream"
        title = f"[{'[' * several}{section.name}]{']' * several}" if section.name else "The proxy"
        text += f"\n## {title}\n\n"
        if section.about:
            text += f"{linked(section.about)}\n\n"
        text += "| key, variable | default | takes | what it is | on reload |\n"
        text += "| --- | --- | --- | --- | --- |\n"
        for names, words in section.groups:
            for at, key in enumerate(names):
                text += row(section.name, key, words if at == 0 else "as above")
    return text + CALLER


CALLER = """
## [[caller]]

Who may call and what they may do, taken over on reload: [callers](callers.md#what-a-caller-may-do) has every key. `nomba-proxy caller …`
keeps them in a file of their own, which is watched.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
