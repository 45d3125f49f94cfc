"""Connections: how streams are spread over them, and what keeps them alive."""

from __future__ import annotations

import pytest

from callboard_firebase.channel import _TO_EMULATOR, _TO_GOOGLE, Lines

from .conftest import Listening

pytestmark = pytest.mark.anyio


async def test_a_line_takes_so_many_streams_and_not_one_more(firestore: Listening) -> None:
    lines = Lines(firestore.client, streams_per_line=2)
    first, second, third = lines.take(), lines.take(), lines.take()
    assert first is second
    assert third is not first
    lines.give_back(second)
    assert lines.take() is first


async def test_a_mute_line_takes_no_more_streams_and_closes_with_its_last(firestore: Listening) -> None:
    lines = Lines(firestore.client, streams_per_line=3)
    mute = lines.take()
    assert lines.take() is mute
    api = await mute.api()
    moved = await lines.exchange(mute)
    assert moved is not mute
    assert lines.take() is moved
    # The other stream on it lives on: what is mute for one need not be for all.
    await api.batch_get_documents(request={"database": firestore.client._database_string, "documents": []})
    assert await lines.exchange(mute) is moved
    assert lines._lines == [moved]
    with pytest.raises(Exception, match="closed"):
        await api.batch_get_documents(request={"database": firestore.client._database_string, "documents": []})
    await lines.close()


def test_pings_keep_googles_connections_alive_and_spare_emulators() -> None:
    """Google's servers accept a ping every 30 s; an emulator hangs up on whoever sends that many."""
    google, emulator = dict(_TO_GOOGLE), dict(_TO_EMULATOR)
    assert (google["grpc.keepalive_time_ms"], google["grpc.keepalive_timeout_ms"]) == (30_000, 10_000)
    assert not any(name.startswith("grpc.keepalive") for name in emulator)
    for options in (google, emulator):
        assert options["grpc.use_local_subchannel_pool"] == 1
        assert options["grpc.max_reconnect_backoff_ms"] == 10_000
