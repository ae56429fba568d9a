"""The keys that nearly every script reads first: where one of them cannot be read, none runs."""

from __future__ import annotations

import msgspec

from fairque.doctor.finding import Finding, FindingKind
from fairque.errors import ConfigError, SettingsMismatch
from fairque.policy import policy_in
from fairque.redis.store import Store

__all__ = ["lay_foundation"]


async def lay_foundation(store: Store, *, repair: bool) -> tuple[list[Finding], bool]:
    """What is wrong with them, and whether all else can be looked at."""
    kinds = {"settings": "hash", "state": "hash", "policy:*": "string"}
    found = [each for name, kind in kinds.items() if (each := await _check_type(store, name, kind, repair=repair))]
    if not found and (damaged := await _check_policy(store, repair=repair)):
        found.append(damaged)
    if any(not finding.mended for finding in found):
        return found, False
    corrupt = await _check_settings(store, repair=repair)
    return found + corrupt, all(finding.mended or finding.kind is not FindingKind.CORRUPT for finding in corrupt)


async def _check_type(store: Store, name: str, kind: str, *, repair: bool) -> Finding | None:
    found = await store.kind_of(name)
    if found in (kind, "none"):
        return None
    how = await store.set_aside(name) if repair else ""
    detail = f"is a {found}, not a {kind}: no script of the queue runs"
    return Finding(kind=FindingKind.WRONG_TYPE, key=name, detail=detail, mended=repair, how=how)


async def _check_policy(store: Store, *, repair: bool) -> Finding | None:
    try:
        policy_in(await store.content_of("policy:*") or b"")
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError) as error:
        how = await store.set_aside("policy:*") if repair else ""
        detail = f"cannot be read: {error}; no script of the queue runs"
        return Finding(kind=FindingKind.CORRUPT, key="policy:*", detail=detail, mended=repair, how=how)
    return None


async def _check_settings(store: Store, *, repair: bool) -> list[Finding]:
    """Those of another layout are somebody else's, and stay."""
    store.backend.agreed = False
    try:
        await store.agree(store=False)
    except SettingsMismatch:
        raise
    except (ConfigError, KeyError) as error:
        how = ""
        if repair:
            how = f"{await store.set_aside('settings')}, and begun anew"
            await store.agree()
        detail = f"cannot be read: {error}"
        return [Finding(kind=FindingKind.CORRUPT, key="settings", detail=detail, mended=repair, how=how)]
    if store.backend.agreed or await store.kind_of("state") == "none":
        return []
    return [await _restore_settings(store, repair=repair)]


async def _restore_settings(store: Store, *, repair: bool) -> Finding:
    if repair:
        await store.agree()
    detail = "those who open the queue next choose other ones"
    how = "those of this process: look whether they are right" if repair else ""
    return Finding(kind=FindingKind.LOST_SETTINGS, key="settings", detail=detail, mended=repair, how=how)
