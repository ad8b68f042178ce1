#!/usr/bin/python3
"""Every NBD command and every error, with the reference client (libnbd), on an export of at least 34 MiB.

    tests/nbd_commands.py URI [--plain]

Overwrites the export. With --plain the server has no TLS, and what it says to clients that want it is
tried too. Each framing that client and server have in common is tried, then random work on four
connections at once against a copy in memory. Exits with 1 at the first difference.

Needs python3-libnbd, and the interpreter that the distribution's module is for.
"""

import argparse
import errno
import random
import socket
import struct
import sys
import urllib.parse

import nbd

MiB = 1 << 20
SECTOR = 512
BLOCK = 4096
LONGEST = 32 * MiB
ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION
# base:allocation: a hole, and it reads as zeros.
HOLE = 3


def connected(uri, structured=True, extended=True):
    """A connection of which the client lets everything through, for the server to refuse."""
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if hasattr(h, "set_request_extended_headers"):
        h.set_request_extended_headers(structured and extended)
    if structured:
        h.add_meta_context(ALLOCATION)
    h.set_uri_allow_local_file(True)
    h.connect_uri(uri)
    h.set_strict_mode(0)
    return h


def fails(what, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == what, f"{error}, not {errno.errorcode[what]}"
        return
    raise AssertionError(f"no error, where {errno.errorcode[what]} is due")


def whole(at, length):
    """Where the whole blocks in a range begin and end: what a trim makes zeros."""
    first = -(-at // BLOCK) * BLOCK
    return first, max(first, (at + length) // BLOCK * BLOCK)


def extents(h, length, offset, flags=0):
    """[(offset, length, flags)] of a look at holes; how far it goes is up to the server."""
    found = []

    def extent(context, at, entries, error):
        assert context == ALLOCATION and at == offset and error.value == 0
        entries = [e if isinstance(e, tuple) else None for e in entries] if entries and \
            isinstance(entries[0], tuple) else list(zip(entries[::2], entries[1::2]))
        for size, state in entries:
            found.append((at, size, state))
            at += size
        return 0

    h.block_status(length, offset, extent, flags)
    assert found, "no extent"
    return found


def negotiation(uri):
    """The options: in any order, what is unknown refused, and the connection usable behind it."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(uri).path.lstrip("/"))
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.set_opt_mode(True)
    h.connect_uri(uri)
    names = []
    assert h.opt_list(lambda export, about: names.append(export)) == len(names)
    assert name in names, f"{name} is not in {names}"
    assert len(set(names)) == len(names)
    contexts = []
    h.opt_list_meta_context(lambda context: contexts.append(context))
    assert contexts == [ALLOCATION], contexts
    for unknown in ["no-such-volume", name + "@00000000-0000-4000-8000-000000000000", "é" * 20, "x" * 4000]:
        h.set_export_name(unknown)
        fails(errno.ENOENT, h.opt_info)
        fails(errno.ENOENT, h.opt_go)
    h.set_export_name(name)
    h.opt_info()
    assert not h.is_read_only() and h.can_flush() and h.can_fua() and h.can_trim()
    assert h.can_zero() and h.can_fast_zero() and h.can_cache() and h.can_multi_conn()
    assert (h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_PREFERRED)) == (SECTOR, 4096)
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == LONGEST
    h.opt_go()
    assert h.pread(SECTOR, 0) is not None
    h.shutdown()
    # The old way in: it closes the connection where it can't say no.
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.set_opt_mode(True)
    h.connect_uri(uri)
    h.opt_abort()
    assert h.aio_is_closed()


def dial(uri):
    """A raw socket to the server, and what it greets with."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme.endswith("+unix"):
        s = socket.socket(socket.AF_UNIX)
        s.connect(urllib.parse.parse_qs(parts.query)["socket"][0])
    else:
        s = socket.create_connection((parts.hostname, parts.port or 10809))
    s.settimeout(60)
    return s


def take(s, length):
    data = b""
    while len(data) < length:
        more = s.recv(length - len(data))
        assert more, "the server closed the connection"
        data += more
    return data


def option(s, number, data=b""):
    """The kind of the only reply to an option."""
    s.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
    magic, echo, kind, length = struct.unpack(">QIII", take(s, 20))
    assert (magic, echo) == (0x3E889045565A9, number)
    take(s, length)
    return kind


def unknown_options(uri, plain):
    """What libnbd can't be made to send."""
    unsupported, policy, invalid, tls_first = 0x80000001, 0x80000002, 0x80000003, 0x80000005
    s = dial(uri)
    assert take(s, 16) == b"NBDMAGICIHAVEOPT"
    take(s, 2)
    s.sendall(struct.pack(">I", 3))
    for number in (0, 4, 12, 98, 0xFFFFFFFF):
        expected = unsupported if plain else tls_first
        assert option(s, number, b"whatever") == expected
    if plain:
        # A server without certificates has no STARTTLS, and says so instead of closing.
        assert option(s, 5) == policy
        assert option(s, 7, b"\0") == invalid
        # A client that insists goes away, one that would like it goes on without.
        if nbd.NBD().supports_tls() and uri.startswith("nbd://"):
            h = nbd.NBD()
            h.set_tls(nbd.TLS_REQUIRE)
            fails(errno.ENOTSUP, h.connect_uri, uri)
            h = nbd.NBD()
            h.set_tls(nbd.TLS_ALLOW)
            h.connect_uri(uri)
            assert not h.get_tls_negotiated()
            h.shutdown()
    assert option(s, 2) == 1
    s.close()


def commands(h, size):
    """Each command with each of its flags, where other blocks are looked at too."""
    chunks = h.get_structured_replies_negotiated()
    assert h.can_df() == chunks
    last = size - SECTOR
    around = b"\xaa" * (64 << 10)
    h.pwrite(around, 0)

    def holds(*pieces):
        """The first 64 KiB are as they were, but for these (offset, data)."""
        expected = bytearray(around)
        for at, data in pieces:
            expected[at:at + len(data)] = data
        assert h.pread(len(expected), 0) == expected, f"after {[(at, len(data)) for at, data in pieces]}"

    holds()
    for flags in (0, nbd.CMD_FLAG_FUA):
        for at, length in ((4096, 4096), (512, 512), (3584, 1024), (8192, 20480), (512, 40960)):
            data = random.randbytes(length)
            h.pwrite(data, at, flags)
            holds((at, data))
            h.pwrite(around[:length], at)
            h.zero(length, at, flags)
            holds((at, bytes(length)))
            h.pwrite(data, at)
            h.trim(length, at, flags)
            # Whole blocks are holes then; pieces of blocks at the ends stay as they were.
            first, end = whole(at, length)
            holds((at, data), (first, bytes(end - first)))
            h.pwrite(around[:length], at)
    for flags in range(8):
        flags = sum(flag for bit, flag in enumerate((nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE,
                                                     nbd.CMD_FLAG_FAST_ZERO)) if flags & 1 << bit)
        h.zero(8192, 2048, flags)
        holds((2048, bytes(8192)))
        h.pwrite(around[:8192], 2048)
    h.flush()
    h.cache(size, 0)
    h.cache(4096, 4096)
    # The longest requests, at a place where they touch one block more than they are long.
    data = random.randbytes(LONGEST)
    h.pwrite(data, SECTOR)
    assert h.pread(LONGEST, SECTOR) == data
    h.zero(size, 0)
    assert h.pread(LONGEST, SECTOR) == bytes(LONGEST)
    # The end.
    h.pwrite(b"e" * SECTOR, last)
    assert h.pread(SECTOR, last) == b"e" * SECTOR
    h.trim(BLOCK, size - BLOCK)
    assert h.pread(SECTOR, last) == bytes(SECTOR)

    if chunks:
        data = random.randbytes(3 * 4096)
        h.pwrite(data, 4096)
        seen = []
        piece = lambda part, at, status, error: seen.append((at, bytes(part), status))
        assert h.pread_structured(16384, 0, piece, nbd.CMD_FLAG_DF) == bytes(4096) + data
        assert [(at, len(part)) for at, part, _ in seen] == [(0, 16384)], "one piece, as asked"
        seen.clear()
        assert h.pread_structured(16384, 0, piece) == bytes(4096) + data
        assert sum(len(part) for _, part, _ in seen) == 16384
        # Holes: runs in order, without a gap; one of them if one is asked for.
        h.zero(size, 0)
        h.pwrite(b"d" * 4096, 8192)
        found, at = [], 0
        while at < size:
            found += extents(h, size - at, at)
            at = found[-1][0] + found[-1][1]
        merged = []
        for start, length, state in found:
            if merged and merged[-1][2] == state and sum(merged[-1][:2]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length, state)
            else:
                merged.append((start, length, state))
        assert merged == [(0, 8192, HOLE), (8192, 4096, 0), (12288, size - 12288, HOLE)], merged
        assert extents(h, 16384, 512, nbd.CMD_FLAG_REQ_ONE) == [(512, 7680, HOLE)]


def errors(h, size):
    """Each error; the connection goes on behind each, and nothing was changed."""
    chunks = h.get_structured_replies_negotiated()
    h.pwrite(b"k" * 4096, size - 4096)
    sector = b"x" * SECTOR
    look = lambda length, offset, flags=0: h.block_status(length, offset, lambda *_: 0, flags)
    read = lambda length, offset, flags=0: h.pread(length, offset, flags)
    write = lambda length, offset, flags=0: h.pwrite(b"x" * length, offset, flags)
    changes = [write, h.trim, h.zero]
    others = [read, h.cache] + ([look] if chunks else [])
    for call in changes + others:
        beyond = errno.ENOSPC if call in changes else errno.EINVAL
        fails(beyond, call, SECTOR, size)
        fails(beyond, call, 2 * SECTOR, size - SECTOR)
        fails(beyond, call, SECTOR, 1 << 62)
        # The end of the range is beyond 64 bits.
        fails(errno.EINVAL, call, SECTOR, (1 << 64) - SECTOR)
        for length, offset in ((SECTOR, 1), (SECTOR, 511), (100, 0), (513, 0), (1, size - 1)):
            fails(errno.EINVAL, call, length, offset)
        fails(errno.EINVAL, call, 0, 0)
        # Flags that the command does not have, and one that nobody has.
        for flags in {nbd.CMD_FLAG_DF, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_NO_HOLE,
                      1 << 9} - {nbd.CMD_FLAG_DF if call == read and chunks else 0,
                                 nbd.CMD_FLAG_REQ_ONE if call == look else 0,
                                 *((nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_NO_HOLE) if call == h.zero else ())}:
            fails(errno.EINVAL, call, SECTOR, 0, flags)
    fails(errno.EINVAL, read, LONGEST + SECTOR, 0)
    fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_DF)
    if chunks:
        fails(errno.EINVAL, h.pread_structured, 4096, size, lambda *_: 0, nbd.CMD_FLAG_DF)
    assert h.pread(4096, size - 4096) == b"k" * 4096
    h.pwrite(sector, 0)
    assert h.pread(SECTOR, 0) == sector


def too_long(uri, size):
    """A payload that is longer than any may be ends its connection, and writes nothing."""
    h = connected(uri)
    h.zero(4096, 0)
    try:
        h.pwrite(b"x" * (LONGEST + SECTOR), 0)
        raise AssertionError("a write over 32 MiB is taken")
    except nbd.Error:
        pass
    h = connected(uri)
    assert h.pread(4096, 0) == bytes(4096)
    h.shutdown()


def random_work(uri, rounds=600, span=2 * MiB, seed=None):
    """Requests on four connections, one after the other or eight at once on ranges that don't touch:
    what one connection was told is what all see."""
    seed = random.randrange(1 << 32) if seed is None else seed
    rng = random.Random(seed)
    handles = [connected(uri) for _ in range(4)]
    handles[0].zero(span, 0)
    model = bytearray(span)
    try:
        for step in range(rounds):
            # Neighbours share blocks of 4096 bytes, which is the server's affair.
            many = rng.choice((1, 1, 8))
            cuts = sorted(rng.sample(range(span // SECTOR + 1), 2 * many))
            flying = []
            for first, end in zip(cuts[::2], cuts[1::2]):
                end = min(end, first + rng.choice((1, 8, 9, 64, 256)))
                at, length = first * SECTOR, (end - first) * SECTOR
                h, flags = rng.choice(handles), rng.choice((0, 0, nbd.CMD_FLAG_FUA))
                what = rng.randrange(4)
                if what < 2:
                    data = rng.randbytes(length)
                    # The buffer lives as long as the request.
                    buffer = nbd.Buffer.from_bytearray(bytearray(data))
                    flying.append((h, h.aio_pwrite(buffer, at, flags=flags), buffer))
                else:
                    data = bytes(length)
                    call = h.aio_trim if what == 2 else h.aio_zero
                    flying.append((h, call(length, at, flags=flags), None))
                if what == 2:
                    start, stop = whole(at, length)
                    model[start:stop] = bytes(stop - start)
                else:
                    model[at:at + length] = data
            for h, cookie, _ in flying:
                while not h.aio_command_completed(cookie):
                    h.poll(-1)
            if step % 20 == 19:
                rng.choice(handles).flush()
                assert rng.choice(handles).pread(span, 0) == model, f"step {step}"
                for start, length, state in extents(rng.choice(handles), span, 0):
                    assert state == 0 or not any(model[start:start + length]), f"step {step}: no hole"
    except BaseException:
        print(f"random work of seed {seed} failed", file=sys.stderr)
        raise
    for h in handles:
        h.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    negotiation(args.uri)
    unknown_options(args.uri, args.plain)
    framings = {}
    for structured, extended in ((False, False), (True, False), (True, True)):
        h = connected(args.uri, structured, extended)
        has_extended = hasattr(h, "get_extended_headers_negotiated") and h.get_extended_headers_negotiated()
        name = "extended" if has_extended else "structured" if structured else "simple"
        assert h.get_structured_replies_negotiated() == structured
        if name not in framings:
            size = h.get_size()
            assert size >= LONGEST + 2 * MiB, "the export is too small"
            commands(h, size)
            errors(h, size)
            framings[name] = True
        h.shutdown()
    too_long(args.uri, size)
    random_work(args.uri)
    print(f"every command is right, with {', '.join(framings)} framing (libnbd {nbd.NBD().get_version()})")


main()
