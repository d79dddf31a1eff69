// Stored weights to panels, and what the layout of a panel is for Python.
#include <cstring>

#include "layout.hpp"
#include "upwell.h"

namespace {

struct Layout {
    int64_t span, stored, packed;  // columns, bytes of them in a stored row, bytes of them in half a panel
};

bool layout_of(int format, Layout* out) {
    switch (format) {
        case UPWELL_F32: *out = {1, 4, 64}; return true;
        case UPWELL_F16:
        case UPWELL_BF16: *out = {1, 2, 32}; return true;
        case UPWELL_Q8_0: *out = {32, 34, 544}; return true;
        case UPWELL_Q4_0: *out = {32, 18, 288}; return true;
        case UPWELL_Q4_1: *out = {32, 20, 320}; return true;
        case UPWELL_Q4_K: *out = {256, 144, 2368}; return true;
        case UPWELL_Q6_K: *out = {256, 210, 3360}; return true;
        default: return false;
    }
}

// W8A8: a scale, then codes; a panel has the codes of 4 columns of each row, and the scales at its end.
int64_t w8a8_scales_at(int64_t k) { return (k + 31) / 32 * 32 * kPanelRows; }

void pack_w8a8(const uint8_t* in, int64_t k, uint8_t* panel, int64_t row) {
    for (int64_t i = 0; i < k; i++) panel[i / 4 * 128 + 4 * row + i % 4] = in[4 + i] ^ 0x80;  // plus 128, as unsigned
    memcpy(panel + w8a8_scales_at(k) + 4 * row, in, 4);
}

// `count` units of `size` bytes of one row go to every 16th unit, beginning with the lane's own.
template <int SIZE>
void spread(const uint8_t* from, int64_t count, uint8_t* to, int64_t lane, uint8_t flip = 0) {
    for (int64_t i = 0; i < count; i++)
        for (int j = 0; j < SIZE; j++) to[(i * kLanes + lane) * SIZE + j] = from[i * SIZE + j] ^ flip;
}

void pack_q4_k(const uint8_t* in, uint8_t* out, int64_t lane) {
    uint8_t scales[8], minima[8];
    for (int i = 0; i < 4; i++) {
        const uint8_t *first = in + 4, *second = in + 8, *rest = in + 12;
        scales[i] = first[i] & 63;
        minima[i] = second[i] & 63;
        scales[i + 4] = (uint8_t)((rest[i] & 15) | (first[i] >> 6 << 4));
        minima[i + 4] = (uint8_t)((rest[i] >> 4) | (second[i] >> 6 << 4));
    }
    spread<4>(in + 16, 32, out, lane);
    spread<1>(scales, 8, out + 2048, lane);
    spread<1>(minima, 8, out + 2176, lane);
    spread<2>(in, 1, out + 2304, lane);
    spread<2>(in + 2, 1, out + 2336, lane);
}

void pack_span(int format, const uint8_t* in, uint8_t* out, int64_t lane) {
    switch (format) {
        case UPWELL_F32: return spread<4>(in, 1, out, lane);
        case UPWELL_F16:
        case UPWELL_BF16: return spread<2>(in, 1, out, lane);
        case UPWELL_Q8_0:
            spread<4>(in + 2, 8, out, lane, 0x80);  // plus 128, as unsigned
            return spread<2>(in, 1, out + 512, lane);
        case UPWELL_Q4_0: spread<4>(in + 2, 4, out, lane); return spread<2>(in, 1, out + 256, lane);
        case UPWELL_Q4_1:
            spread<4>(in + 4, 4, out, lane);
            spread<2>(in, 1, out + 256, lane);
            return spread<2>(in + 2, 1, out + 288, lane);
        case UPWELL_Q4_K: return pack_q4_k(in, out, lane);
        default:
            spread<4>(in, 32, out, lane);
            spread<4>(in + 128, 16, out + 2048, lane);
            spread<1>(in + 192, 16, out + 3072, lane);
            return spread<2>(in + 208, 1, out + 3328, lane);
    }
}

int64_t panel_bytes(int format, const Layout& layout, int64_t k) {
    if (format == UPWELL_W8A8) return w8a8_scales_at(k) + 4 * kPanelRows;
    return (k + layout.span - 1) / layout.span * 2 * layout.packed;
}

}  // namespace

extern "C" int64_t upwell_packed_bytes(int format, int64_t n, int64_t k) {
    Layout layout = {1, 1, 0};
    if (n < 0 || k < 0 || (format != UPWELL_W8A8 && !layout_of(format, &layout))) return -1;
    return (n + kPanelRows - 1) / kPanelRows * panel_bytes(format, layout, k);
}

extern "C" int upwell_pack(int format, int64_t rows, int64_t k, const uint8_t* stored, int64_t row_bytes,
                           uint8_t* panels, int64_t first) {
    Layout layout = {1, 1, 0};
    bool w8a8 = format == UPWELL_W8A8;
    if (!w8a8 && !layout_of(format, &layout)) return UPWELL_BAD_FORMAT;
    if (rows < 0 || k < 0 || first < 0) return UPWELL_BAD_COUNT;
    if (!stored || !panels) return UPWELL_BAD_ADDRESS;
    int64_t spans = k / layout.span, panel = panel_bytes(format, layout, k);
    if (k % layout.span || row_bytes != spans * layout.stored + (w8a8 ? 4 : 0)) return UPWELL_BAD_ROW;
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t* in = stored + r * row_bytes;
        uint8_t* out = panels + (first + r) / kPanelRows * panel;
        int64_t row = (first + r) % kPanelRows, half = row / kLanes;
        if (w8a8) {
            pack_w8a8(in, k, out, row);
            continue;
        }
        for (int64_t s = 0; s < spans; s++)
            pack_span(format, in + s * layout.stored, out + (2 * s + half) * layout.packed, row % kLanes);
    }
    return UPWELL_OK;
}
