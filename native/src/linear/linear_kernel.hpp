// What the generic and the AVX2 path share: which part of a product a piece is, and the order in which groups, shards,
// scales and biases meet. Included inside the path's namespace, behind its lanes and its constant
//
//   products_per_ns    about what one thread multiplies

using Sums = float (*)[panel_width];  // [row][output]

// Supplied by the path: the most rows of a tile, and the tile, which adds the products of the groups [first, last) of a
// panel with up to so many rows to their sums.
static int64_t tile_rows(const Matrix&);
static void tile(const Product&, int64_t panel, int64_t row, int64_t rows, int64_t first, int64_t last, Sums sums);

constexpr int64_t rows_of_piece = 64;  // so many rows' sums and totals stay in the first-level cache
constexpr int64_t span_groups = 16;    // so many groups' weights stay there too, for tile after tile of rows

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t row_ranges(int64_t rows) { return (rows + rows_of_piece - 1) / rows_of_piece; }

// In int8_row all inputs share a scale: their products add up as integers, which share the place of the sums.
static bool sums_are_integers(const Matrix& m) {
    return m.layout == WeightLayout::int8 && m.activations == Activations::int8_row;
}

static int64_t pieces(const Matrix& m, int64_t rows, int threads) {
    constexpr double bytes_per_ns = 16, piece_ns = 40e3;
    const int64_t units = m.panels * row_ranges(rows);
    const double digits = m.activations == Activations::int8x2 ? 2 : 1;
    const double read_ns = static_cast<double>(packed_bytes(m.layout, m.panels, m.depth)) / bytes_per_ns;
    const double product_ns = static_cast<double>(m.panels * panel_width * m.depth * rows) * digits / products_per_ns;
    const int64_t wanted = static_cast<int64_t>((read_ns > product_ns ? read_ns : product_ns) / piece_ns) + 1;
    const int64_t even = (wanted + threads - 1) / threads * threads;
    return least(even, units);
}

// Adds the groups [first, last) in ascending order. Tiles are as even as can be: one of a single row is a slow one.
static void add_groups(const Product& p, int64_t panel, int64_t row, int64_t rows, int64_t first, int64_t last,
                       Sums sums) {
    const int64_t most = tile_rows(*p.matrix), tiles = (rows + most - 1) / most;
    for (int64_t group = first; group < last; group += span_groups)
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t r = rows * i / tiles, behind = rows * (i + 1) / tiles;
            tile(p, panel, row + r, behind - r, group, least(group + span_groups, last), sums + r);
        }
}

// One shard's sums join the totals; 65,536 products of bytes are the most that surely fit into an int32.
static void add_shard(const Product& p, int64_t panel, int64_t row, int64_t rows, int64_t first, int64_t last,
                      Sums sums, Sums totals) {
    const bool integers = sums_are_integers(*p.matrix);
    const int64_t most = integers ? 65536 / group_depth : last - first;
    for (int64_t from = first; from < last; from += most) {
        for (int64_t r = 0; r < rows; ++r) store(sums[r], zero()), store(sums[r] + 16, zero());
        add_groups(p, panel, row, rows, from, least(from + most, last), sums);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < panel_width; i += 16) {
                const F32 sum = load(sums[r] + i);
                store(totals[r] + i, add(load(totals[r] + i), integers ? to_float(as_int(sum)) : sum));
            }
    }
}

static void finish(const Product& p, int64_t panel, int64_t row, int64_t rows, Sums totals) {
    const Matrix& m = *p.matrix;
    const int64_t output = panel * panel_width;
    for (int64_t r = 0; r < rows; ++r) {
        float* const out = p.out + (row + r) * p.stride + output;
        for (int64_t i = 0; i < panel_width; i += 16) {
            F32 y = load(totals[r] + i);
            if (m.layout == WeightLayout::int8) {
                F32 scale = load(m.scales + output + i);
                if (m.activations == Activations::int8_row) scale = mul(all(p.x.scales[row + r]), scale);
                y = m.bias ? fma(y, scale, load(m.bias + output + i)) : mul(y, scale);
            } else if (m.bias) {
                y = add(y, load(m.bias + output + i));
            }
            store(out + i, p.add ? add(load(out + i), y) : y);
        }
    }
}

// A unit is a panel and a range of rows; a piece is consecutive units, so that its weights are one stream.
static void run(const Product& p, int64_t piece, int64_t pieces, void* scratch) {
    const Matrix& m = *p.matrix;
    const Sums sums = static_cast<Sums>(scratch), totals = sums + rows_of_piece;
    const int64_t ranges = row_ranges(p.rows), units = m.panels * ranges;
    for (int64_t unit = units * piece / pieces; unit < units * (piece + 1) / pieces; ++unit) {
        const int64_t panel = unit / ranges, range = unit % ranges;
        const int64_t row = p.rows * range / ranges, rows = p.rows * (range + 1) / ranges - row;
        for (int64_t r = 0; r < rows; ++r) store(totals[r], zero()), store(totals[r] + 16, zero());
        for (int32_t shard = 0; shard < m.shards; ++shard) {
            const int64_t first = m.border[shard] / group_depth, last = m.border[shard + 1] / group_depth;
            add_shard(p, panel, row, rows, first, last, sums, totals);
        }
        finish(p, panel, row, rows, totals);
    }
}
