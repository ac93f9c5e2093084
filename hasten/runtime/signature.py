"""Who made a bundle: a key that only this user on this machine has, and what it signs.

An artifact that can run code when it is loaded is loaded only where its maker made it, or where
the user says that the maker is trusted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from hasten.errors import BundleError
from hasten.runtime.manifest import canonical
from hasten.storage import durable

_KEY_BYTES = 32


def signed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with this user's signature; makes the key at its first use."""
    return {**raw, "signature": _signature(raw, _own_key())}


def require_own(folder: Path, raw: Mapping[str, Any]) -> None:
    """Make sure that this user made the bundle on this machine.

    Raises:
        BundleError: somebody else did, or it was altered.
    """
    claimed = str(raw.get("signature", ""))
    unsigned = {name: value for name, value in raw.items() if name != "signature"}
    path = key_file()
    key = path.read_bytes() if path.exists() else b""
    own = len(key) == _KEY_BYTES and hmac.compare_digest(claimed, _signature(unsigned, key))
    if not own:
        raise BundleError(
            f"the artifact in {folder} can run code when it is loaded, and it was not made by "
            "you on this machine",
            fix="If you trust whoever made it: hasten.load(..., trust=True).",
        )


def key_file() -> Path:
    """Where this user's key lies."""
    return platformdirs.user_data_path("hasten") / "bundle.key"


def _signature(raw: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, canonical(raw), hashlib.sha256).hexdigest()


def _own_key() -> bytes:
    """This user's key on this machine, made at the first use and readable by nobody else."""
    path = key_file()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Where another process was first, its key is the one.
        durable.create(path, secrets.token_bytes(_KEY_BYTES), path.parent, mode=0o600)
    return path.read_bytes()
