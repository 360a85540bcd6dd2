"""What sequence parameter sets say: the picture's size, how far pictures are reordered, the number under which sets replace each other.

H.264: ITU-T H.264 7.3.2.1.1 and E.1. H.265: ITU-T H.265 7.3.2.2. Nothing is decoded.
Invariant: no bytes from a camera make these functions raise; what cannot be read has no size, and nothing to say.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

SIZE_MAX: Final = 16_384  # a larger picture is a misread parameter set
ID_MAX: Final = {"vps": 15, "sps": 31, "pps": 255}  # H.264 7.4.2.1 and 7.4.2.2, H.265 7.4.3: so the sets of a stream are bounded
DEPTH_MAX: Final = 16  # H.264 A.3.1, H.265 A.4.1: no decoder holds more pictures

# H.264 7.3.2.1.1: profiles whose parameter sets say how chroma is sampled.
_HIGH_PROFILES: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
# Table 6-1: horizontal and vertical subsampling of chroma by chroma_format_idc; monochrome crops by single samples.
_SUBSAMPLING: Final = {0: (1, 1), 1: (2, 2), 2: (2, 1), 3: (1, 1)}


class _Bits:
    """Reads an RBSP bit by bit. Raises ValueError at its end."""

    def __init__(self, nal: bytes, start: int) -> None:
        rbsp = unescape(nal[start:])
        self._value = int.from_bytes(rbsp, "big")
        self._left = 8 * len(rbsp)

    def u(self, bits: int) -> int:
        self._left -= bits
        if self._left < 0:
            raise ValueError("the parameter set is cut off")
        return self._value >> self._left & ((1 << bits) - 1)

    def ue(self) -> int:
        zeroes = 0
        while not self.u(1):
            zeroes += 1
            if zeroes > 32:
                raise ValueError("no Exp-Golomb code is that long")
        return (1 << zeroes) - 1 + (self.u(zeroes) if zeroes else 0)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def unescape(data: bytes) -> bytes:
    """Without emulation prevention bytes (H.264 7.4.1, H.265 7.4.2.1)."""
    if b"\x00\x00\x03" not in data:
        return data
    out = bytearray()
    zeroes = 0
    for byte in data:
        if zeroes >= 2 and byte == 3:
            zeroes = 0
            continue
        out.append(byte)
        zeroes = zeroes + 1 if byte == 0 else 0
    return bytes(out)


@lru_cache(maxsize=1024)
def picture_size(codec: str, sps: bytes) -> tuple[int, int] | None:
    """Width and height in pixels, cropped, or None when the set cannot be read. `codec` is "h264" or "hevc"."""
    try:
        size = _h264_size(sps) if codec == "h264" else _h265_size(sps)
    except ValueError:
        return None
    return size if all(0 < side <= SIZE_MAX for side in size) else None


@lru_cache(maxsize=1024)
def set_id(codec: str, kind: str, nal: bytes) -> int:
    """The number of a parameter set of `kind` "vps", "sps" or "pps"; -1 when it cannot be read, or cannot be."""
    try:
        number = _set_id(codec, kind, nal)
    except ValueError:
        return -1
    return number if number <= ID_MAX[kind] else -1


def _set_id(codec: str, kind: str, nal: bytes) -> int:
    if codec == "h264":
        return _Bits(nal, 4 if kind == "sps" else 1).ue()
    bits = _Bits(nal, 2)
    if kind == "vps":
        return bits.u(4)
    if kind == "sps":
        _h265_profile(bits)
    return bits.ue()


@lru_cache(maxsize=1024)
def reorder_depth(codec: str, sps: bytes) -> int | None:
    """How many pictures may come before one that is shown before them; None where the set does not say.

    H.264: max_num_reorder_frames (E.2.1), or none at all by profile or picture order count. H.265: sps_max_num_reorder_pics.
    """
    try:
        depth = _h264_depth(sps) if codec == "h264" else _h265_depth(sps)
    except ValueError:
        return None
    return depth if depth is None or depth <= DEPTH_MAX else None


def _h264_size(sps: bytes) -> tuple[int, int]:
    bits = _Bits(sps, 1)
    return _h264_picture(bits)[:2]


def _h264_depth(sps: bytes) -> int | None:
    bits = _Bits(sps, 1)
    order = _h264_picture(bits)[2]
    if sps[1] == 66 or order == 2:
        return 0  # A.2.1: no B slices; 8.2.1.3: output in decoding order
    if not bits.u(1):
        return None
    if bits.u(1) and bits.u(8) == 255:  # aspect ratio
        bits.u(32)
    if bits.u(1):  # overscan
        bits.u(1)
    if bits.u(1):  # video signal
        bits.u(4)
        if bits.u(1):
            bits.u(24)
    if bits.u(1):  # where chroma is sampled
        bits.ue()
        bits.ue()
    if bits.u(1):  # timing
        bits.u(65)
    decoders = 0
    for _ in range(2):  # NAL, then VCL
        if bits.u(1):
            _skip_reference_decoder(bits)
            decoders += 1
    if decoders:
        bits.u(1)
    bits.u(1)  # pic_struct_present_flag
    if not bits.u(1):
        return None
    bits.u(1)
    for _ in range(4):
        bits.ue()
    return bits.ue()


def _skip_reference_decoder(bits: _Bits) -> None:
    """hrd_parameters (E.1.2)."""
    count = bits.ue() + 1
    bits.u(8)
    for _ in range(min(count, 32)):
        bits.ue()
        bits.ue()
        bits.u(1)
    bits.u(20)


def _h264_picture(bits: _Bits) -> tuple[int, int, int]:
    """Width, height and pic_order_cnt_type; all that stands in front of the VUI is read."""
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level
    bits.ue()  # its number
    chroma, separate = 1, 0
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3:
            separate = bits.u(1)
        bits.ue()  # bit depths
        bits.ue()
        bits.u(1)
        if bits.u(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    bits.ue()  # log2_max_frame_num_minus4
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.u(1)
        bits.se()
        bits.se()
        for _ in range(min(bits.ue(), 256)):
            bits.se()
    bits.ue()  # max_num_ref_frames
    bits.u(1)
    width = 16 * (bits.ue() + 1)
    units = bits.ue() + 1
    frames_only = bits.u(1)
    height = 16 * units * (2 - frames_only)
    if not frames_only:
        bits.u(1)
    bits.u(1)
    if bits.u(1):
        x, y = _SUBSAMPLING.get(0 if separate else chroma, (1, 1))
        y *= 2 - frames_only
        width -= x * (bits.ue() + bits.ue())
        height -= y * (bits.ue() + bits.ue())
    return width, height, order


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _h265_profile(bits: _Bits) -> None:
    """Skip up to the end of profile_tier_level (7.3.3), header of the set included."""
    bits.u(4)
    sub_layers = bits.u(3)
    bits.u(1)
    bits.u(96)
    if sub_layers:
        present = [(bits.u(1), bits.u(1)) for _ in range(sub_layers)]
        bits.u(2 * (8 - sub_layers))
        for profile, level in present:
            bits.u(88 * profile + 8 * level)


def _h265_size(sps: bytes) -> tuple[int, int]:
    return _h265_picture(_Bits(sps, 2))


def _h265_depth(sps: bytes) -> int:
    bits = _Bits(sps, 2)
    _h265_picture(bits)
    bits.ue()  # bit depths
    bits.ue()
    bits.ue()  # log2_max_pic_order_cnt_lsb_minus4
    layers = (sps[2] >> 1 & 7) + 1 if bits.u(1) else 1
    depth = 0
    for _ in range(layers):
        bits.ue()
        depth = bits.ue()
        bits.ue()
    return depth


def _h265_picture(bits: _Bits) -> tuple[int, int]:
    _h265_profile(bits)
    bits.ue()  # its number
    chroma = bits.ue()
    separate = bits.u(1) if chroma == 3 else 0
    width, height = bits.ue(), bits.ue()
    if bits.u(1):
        x, y = _SUBSAMPLING.get(0 if separate else chroma, (1, 1))
        width -= x * (bits.ue() + bits.ue())
        height -= y * (bits.ue() + bits.ue())
    return width, height
