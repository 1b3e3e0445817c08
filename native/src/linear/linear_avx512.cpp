// Packed linear layers with AVX-512 (VNNI, BF16). See linear.hpp for the layouts and the order of every sum.
#include "linear/avx512_float.hpp"
#include "linear/avx512_gather.hpp"
#include "linear/avx512_int4.hpp"
#include "linear/avx512_int8.hpp"
#include "linear/avx512_tile.hpp"

namespace stretto::avx512 {
#include "linear/prepare_kernel.hpp"
}  // namespace stretto::avx512

namespace stretto::avx512 {
namespace {

constexpr int64_t block_rows = 64;         // rows of a prompt that pass over a panel together
constexpr int64_t block_bytes = 16 << 10;  // of a panel that wait in the nearest cache for the next tile of rows
constexpr int64_t gathered_bytes = 512 << 10;
constexpr int64_t partial_floats = 32 << 10;  // 128 KiB of sums, and as many totals
constexpr int64_t exact_depth = 65536;        // int8_row: inputs that an int32 certainly holds

using TileFunction = void (*)(const Tile&);
using GatherFunction = void (*)(const Rows&, int64_t, int64_t, int64_t, int64_t, char*);

struct Tiles {
    TileFunction of[most_rows];  // by number of rows, less one
};

struct Kernel {
    Tiles alone, shared;  // where all rows are one tile, and where several share what they read of a panel
    GatherFunction gather;
};

template <Kind kind, int R, bool shared>
constexpr TileFunction tile_of() {
    if constexpr (kind == Kind::fp32)
        return fp32_tile<R>;
    else if constexpr (kind == Kind::bf16)
        return bf16_tile<R>;
    else if constexpr (kind == Kind::int8)
        return int8_tile<R, false, shared>;
    else if constexpr (kind == Kind::int8_row)
        return int8_row_tile<R>;
    else if constexpr (kind == Kind::int8x2)
        return int8_tile<R, true, false>;
    else
        return int4_tile<R, kind == Kind::int4_zeros>;
}

template <Kind kind, bool shared, int... R>
constexpr Tiles tiles_up_to(std::integer_sequence<int, R...>) {
    return {{tile_of<kind, R + 1, shared>()...}};
}

template <Kind kind>
constexpr Kernel kernel_of() {
    constexpr auto all = std::make_integer_sequence<int, most_rows>{};
    return {tiles_up_to<kind, false>(all), tiles_up_to<kind, true>(all), gather<kind>};
}

constexpr Kernel kernels[kinds] = {kernel_of<Kind::fp32>(),      kernel_of<Kind::bf16>(),   kernel_of<Kind::int8>(),
                                   kernel_of<Kind::int8_row>(),  kernel_of<Kind::int8x2>(), kernel_of<Kind::int4>(),
                                   kernel_of<Kind::int4_zeros>()};

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// Tiles of int8 multiply both halves of a panel at once: two of four rows take less than one of eight.
constexpr int64_t tiles_of(Kind kind, int64_t rows) {
    const int64_t most = kind == Kind::int8 ? 6 : most_rows;
    return (rows + most - 1) / most;
}

constexpr int64_t row_blocks(int64_t rows) { return (rows + block_rows - 1) / block_rows; }

// A rectangle of panels and rows on one thread.
class Pass {
public:
    Pass(const Product& product, int64_t first_row, int64_t rows, char* scratch)
        : product(product),
          matrix(*product.matrix),
          kind(kind_of(matrix)),
          kernel(kernels[int(kind)]),
          first_row(first_row),
          rows(rows),
          tiles(tiles_of(kind, rows)),
          groups(matrix.depth / group_depth),
          gathered(scratch),
          partial(reinterpret_cast<float*>(scratch + gathered_bytes)),
          total(partial + partial_floats) {
        // One tile reads each weight once and takes the inputs whole. More come back for their block of a panel, which
        // waits in the cache; the first ones bring the next block.
        block = tiles == 1 ? groups : larger(1, block_bytes / weight_bytes(kind));
        const int64_t fitting = gathered_bytes / (row_bytes(kind) * rows);
        stage = fitting >= groups ? groups : fitting > block ? fitting / block * block : fitting;
        lines = (weight_bytes(kind) / 64 + tiles - 1) / tiles;
    }

    void run(int64_t begin, int64_t end) {
        if (stage == groups) {
            gather_rows(0, groups);
            for (int64_t panel = begin; panel < end; ++panel) sweep(panel, 0, groups, partial, total);
            return;
        }
        // Gathered a stage at a time: the sums of several panels wait in between.
        const int64_t at_once = larger(1, partial_floats / (panel_width * rows));
        for (int64_t from = begin; from < end; from += at_once) {
            const int64_t to = smaller(end, from + at_once);
            for (int64_t group = 0; group < groups; group += stage) {
                const int64_t last = smaller(groups, group + stage);
                gather_rows(group, last);
                for (int64_t panel = from; panel < to; ++panel) {
                    const int64_t waiting = (panel - from) * rows * panel_width;
                    sweep(panel, group, last, partial + waiting, total + waiting);
                }
            }
        }
    }

private:
    int64_t tile_begin(int64_t tile) const { return rows * tile / tiles; }

    void gather_rows(int64_t begin, int64_t end) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t row = tile_begin(tile);
            kernel.gather(product.x, first_row + row, tile_begin(tile + 1) - row, begin, end,
                          gathered + row * row_bytes(kind) * (end - begin));
        }
    }

    // The groups [begin, end) of one panel, cut where shards end.
    void sweep(int64_t panel, int64_t begin, int64_t end, float* sums, float* totals) {
        bool first = true;  // shard with any inputs
        for (int shard = 0; shard < matrix.shards; ++shard) {
            int64_t from = matrix.border[shard] / group_depth;
            const int64_t to = matrix.border[shard + 1] / group_depth;
            const int64_t span = kind == Kind::int8_row && to - from > 2 * exact_depth / group_depth
                                     ? exact_depth / group_depth
                                     : groups;
            for (; from < to; from += span, first = false) {
                const int64_t until = smaller(to, from + span);
                if (until <= begin || from >= end) continue;
                const int64_t here = smaller(until, end);
                for (int64_t group = larger(from, begin); group < here; group += block) {
                    multiply(panel, begin, end, group, smaller(here, group + block), group == from, sums);
                }
                if (until <= end) conclude(first, sums, totals);
            }
        }
        if (end == groups) finish(panel, totals);
    }

    // One block: all tiles over the groups [begin, end) of a panel.
    void multiply(int64_t panel, int64_t stage_begin, int64_t stage_end, int64_t begin, int64_t end, bool fresh,
                  float* sums) {
        const int64_t before = panel * groups + begin;  // groups of the matrix
        Tile tile{};
        tile.weights = static_cast<const char*>(matrix.weights) + before * weight_bytes(kind);
        tile.scales = matrix.group_scales + before * panel_width;
        tile.zeros = matrix.zeros ? matrix.zeros + before * panel_width : nullptr;
        tile.groups = end - begin;
        tile.fresh = fresh;
        tile.lines = lines;
        const int64_t bytes = tile.groups * weight_bytes(kind);
        const char* next = tile.weights + (tiles == 1 ? block_ahead : bytes);
        for (int64_t number = 0; number < tiles; ++number) {
            const int64_t row = tile_begin(number), count = tile_begin(number + 1) - row;
            tile.rows = gathered + (row * (stage_end - stage_begin) + count * (begin - stage_begin)) * row_bytes(kind);
            tile.partial = sums + row * panel_width;
            tile.ahead = next + number * tile.groups * lines * 64;
            (tiles == 1 ? kernel.alone : kernel.shared).of[count - 1](tile);
        }
    }

    // A shard is complete: its sums join the totals.
    void conclude(bool first, const float* sums, float* totals) {
        for (int64_t at = 0; at < rows * panel_width; at += 16) {
            const __m512 sum = kind == Kind::int8_row ? _mm512_maskz_cvtepi32_ps(0xffff, _mm512_load_si512(sums + at))
                                                      : _mm512_load_ps(sums + at);
            _mm512_store_ps(totals + at, first ? sum : _mm512_add_ps(_mm512_load_ps(totals + at), sum));
        }
    }

    void finish(int64_t panel, const float* totals) {
        const int64_t column = panel * panel_width;
        for (int half = 0; half < 2; ++half) {
            const int64_t at = column + 16 * half;
            const bool scaled = matrix.layout == WeightLayout::int8;
            const __m512 scale = scaled ? _mm512_loadu_ps(matrix.scales + at) : _mm512_setzero_ps();
            for (int64_t row = 0; row < rows; ++row) {
                __m512 y = _mm512_load_ps(totals + row * panel_width + 16 * half);
                if (kind == Kind::int8_row) {
                    y = _mm512_mul_ps(y, _mm512_mul_ps(_mm512_set1_ps(product.x.scales[first_row + row]), scale));
                } else if (scaled) {
                    y = _mm512_mul_ps(y, scale);
                }
                if (matrix.bias) y = _mm512_add_ps(y, _mm512_loadu_ps(matrix.bias + at));
                float* out = product.out + (first_row + row) * product.stride + at;
                if (product.add) y = _mm512_add_ps(_mm512_loadu_ps(out), y);
                _mm512_storeu_ps(out, y);
            }
        }
    }

    const Product& product;
    const Matrix& matrix;
    const Kind kind;
    const Kernel& kernel;
    const int64_t first_row, rows, tiles, groups;
    char* const gathered;
    float *const partial, *const total;
    int64_t block, stage, lines;  // groups of a block, groups gathered at once, lines brought ahead in a group
};

// Pieces of some 25 microseconds for one row, longer for more, as rows have to be gathered for each: of prompts 0.3 ms,
// and up to 1.5 where all threads still get eight.
int64_t pieces(const Matrix& matrix, int64_t rows, int threads) {
    if (rows == 0 || matrix.panels == 0) return 0;
    const int64_t blocks = row_blocks(rows), tall = (rows + blocks - 1) / blocks;
    const Kind kind = kind_of(matrix);
    const int64_t bytes = matrix.depth / group_depth * weight_bytes(kind);
    // Nanoseconds of a panel, roughly: in one, memory gives a thread 20 bytes and arithmetic 180 products of int8.
    const int64_t digits = kind == Kind::fp32 || kind == Kind::int8x2 ? 2 : 1;
    const int64_t rate = kind == Kind::fp32 || kind == Kind::bf16 ? 90 : 180;
    const int64_t panel = larger(bytes / 20, matrix.depth * panel_width * tall * digits / rate) + 1;
    const int64_t work = panel * matrix.panels;
    const int64_t aim = tall > 32 ? 300000 : tall > 16 ? 250000 : tall > 8 ? 150000 : tall > 4 ? 75000 : 25000;
    const int64_t deep = tall > 4 ? larger(1, matrix.depth / 4096) : 1;  // longer rows take longer to gather
    int64_t wanted = larger(smaller(threads, work / 2000 + 1), work / (aim * deep));
    if (tall > 32) wanted = smaller(wanted, larger(8 * threads / blocks, work / (1500000 * deep)));
    wanted = (wanted + threads - 1) / threads * threads;
    return blocks * larger(1, smaller(wanted, matrix.panels));
}

void run(const Product& product, int64_t piece, int64_t pieces, void* scratch) {
    const int64_t blocks = pieces % row_blocks(product.rows) == 0 ? row_blocks(product.rows) : 1;
    const int64_t parts = pieces / blocks, part = piece / blocks;
    const int64_t begin = product.matrix->panels * part / parts, end = product.matrix->panels * (part + 1) / parts;
    const int64_t first = product.rows * (piece % blocks) / blocks, last = product.rows * (piece % blocks + 1) / blocks;
    for (int64_t row = first; row < last; row += block_rows) {
        Pass(product, row, smaller(block_rows, last - row), static_cast<char*>(scratch)).run(begin, end);
    }
}

}  // namespace

const LinearKernels linear_kernels = {128, false, pieces, run, prepare};

}  // namespace stretto::avx512
