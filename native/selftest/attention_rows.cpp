// A row's attention has the same bits alone and in company, in place and in scratch slots, as a tree and as a prompt,
// over any pieces and threads; and what it does not see may be NaN.
#include <algorithm>
#include <cmath>

#include "attention_case.hpp"

namespace stretto::selftest {
namespace {

// One text: keys and values by position, and queries of its last rows.
struct Text {
    Text(const HeadShape& shape, int64_t length, int64_t rows, Random& random)
        : shape(shape),
          length(length),
          rows(rows),
          keys(length * shape.kv_width()),
          values(keys),
          query(rows * shape.width()) {
        for (float& x : keys) x = random.normal();
        for (float& x : values) x = random.normal();
        for (float& x : query) x = random.normal();
        scale = 1.0f / std::sqrt(static_cast<float>(shape.size));
        if (random.one_in(3)) cap = 20.0f;
        if (random.one_in(3)) window = random.between(1, length);
    }
    int64_t first() const { return length - rows; }  // index of the first row

    const HeadShape shape;
    const int64_t length, rows;
    Buffer<float> keys, values, query;
    float scale, cap = 0.0f;
    int64_t window = 0;
};

// The text in a lane of its own, and passes over its rows.
class Written {
public:
    Written(const Kernels& kernels, const Text& text, int64_t scatter, Random& random)
        : kernels_(kernels), text_(text), random_(random), lane(text.shape, text.length / 4 + 60, random) {
        slots = lane.place(0, text.length, scatter);
        for (int64_t i = 0; i < text.length; ++i) write(i, slots[static_cast<size_t>(i)]);
    }

    // Moves positions to fresh slots in no order, as drafted rows lie.
    void scatter(int64_t position) {
        slots[static_cast<size_t>(position)] = lane.scratch();
        write(position, slots[static_cast<size_t>(position)]);
    }
    void spoil(int64_t position) {  // NaN in place of its key and value
        Buffer<float> nan(text_.shape.kv_width());
        for (float& x : nan) x = NAN;
        kernels_.attention.write(lane.storage(), slots[static_cast<size_t>(position)], nan.data(), nan.data());
    }

    // Rows first...first + rows - 1 of the text as a view that sees positions before `context` as spans and the rest
    // singly; `every`: all of these from the first row on, as ancestors are seen.
    void add(PassCase& pass, int64_t first, int64_t rows, bool every) const {
        const int64_t index = text_.first() + first, context = every ? random_.between(0, index) : index;
        ViewCase view{pass.rows(), rows, false, {}, {}};
        for (int64_t start = 0; start < context;) {
            const int64_t size = random_.one_in(3) ? random_.between(1, context - start) : context - start;
            view.spans.push_back({start, {slots.begin() + start, slots.begin() + start + size}});
            start += size;
        }
        for (int64_t i = context; i < index + rows; ++i)
            view.extras.push_back({slots[static_cast<size_t>(i)], i, i < index ? by_all : i - index});
        for (int64_t i = 0; i < rows; ++i) pass.index.push_back(index + i);
        pass.views.push_back(std::move(view));
    }

    // The pass's rows are those of the text from `first` on.
    Call call(const PassCase& pass, int64_t first) const {
        Call call;
        call.scale = text_.scale, call.cap = text_.cap, call.window = text_.window;
        call.query = Buffer<float>(pass.rows() * text_.shape.width());
        std::copy_n(text_.query.data() + first * text_.shape.width(), call.query.size(), call.query.data());
        return call;
    }

    Buffer<float> run(const PassCase& pass, const Call& call, int threads, bool apart) const {
        Buffer<float> out(pass.rows() * text_.shape.width());
        const AttentionPlan plan = pass.plan();
        const Attend attended = attend(lane, pass, plan, call, out, text_.shape.width());
        if (apart)
            run_on_threads(kernels_.attention, attended, threads);
        else
            run_shuffled(kernels_.attention, attended, threads, random_);
        return out;
    }

private:
    void write(int64_t position, int64_t slot) {
        const int64_t width = text_.shape.kv_width();
        kernels_.attention.write(lane.storage(), slot, text_.keys.data() + position * width,
                                 text_.values.data() + position * width);
    }
    const Kernels& kernels_;
    const Text& text_;
    Random& random_;

public:
    Lane lane;
    std::vector<int64_t> slots;
};

struct Checks {
    Check &company, &places, &unseen, &lost;
};

Buffer<float> whole(const Written& written, const Text& text, int threads, bool apart) {
    PassCase pass;
    written.add(pass, 0, text.rows, false);
    return written.run(pass, written.call(pass, 0), threads, apart);
}

void check_text(const Kernels& kernels, const Checks& checks, const Text& given, Random& random) {
    const int64_t width = given.shape.width(), rows = given.rows;
    const std::string name =
        given.shape.name() + text(", %lld positions, %lld rows, cap %g, window %lld",
                                  static_cast<long long>(given.length), static_cast<long long>(rows),
                                  static_cast<double>(given.cap), static_cast<long long>(given.window));
    for (Check* check : {&checks.company, &checks.places, &checks.unseen, &checks.lost}) check->about(name);

    constexpr int64_t never = 1 << 30;
    const Written in_place(kernels, given, never, random);
    Buffer<float> alone(rows * width);
    for (int64_t row = 0; row < rows; ++row) {
        PassCase pass;
        in_place.add(pass, row, 1, false);
        const Buffer<float> one = in_place.run(pass, in_place.call(pass, row), 1, false);
        std::copy_n(one.data(), width, alone.data() + row * width);
    }
    for (const int threads : {1, 2, 3, 40})
        checks.company.same(whole(in_place, given, threads, threads == 2 || threads == 3), alone);
    PassCase slices;
    for (int64_t row = 0; row < rows;) {
        const int64_t size = random.between(1, rows - row);
        in_place.add(slices, row, size, random.one_in(2));
        row += size;
    }
    checks.company.same(in_place.run(slices, in_place.call(slices, 0), static_cast<int>(random.between(1, 4)), false),
                        alone);

    Written scattered(kernels, given, 2, random);
    checks.places.same(whole(scattered, given, 2, false), alone);
    for (int64_t i = given.first(); i < given.length; ++i) scattered.scatter(i);
    checks.places.same(whole(scattered, given, 1, false), alone);
    PassCase tree;
    for (int64_t row = 0; row < rows; ++row) scattered.add(tree, row, 1, true);
    checks.places.same(scattered.run(tree, scattered.call(tree, 0), 3, false), alone);

    // A query that is not finite is lost, and no other; likewise rows that see a position with NaN.
    const int64_t lost = random.below(rows);
    PassCase pass;
    scattered.add(pass, 0, rows, false);
    Call call = scattered.call(pass, 0);
    for (int64_t head = 0; head < given.shape.heads(); ++head) call.query[lost * width + head * given.shape.size] = NAN;
    const Buffer<float> marred = scattered.run(pass, call, 2, false);
    for (int64_t row = 0; row < rows; ++row) {
        if (row != lost) checks.lost.same(marred.data() + row * width, alone.data() + row * width, width);
        for (int64_t i = 0; row == lost && i < width; ++i)
            checks.lost.that(std::isnan(marred[row * width + i]), "NaN from a query with NaN");
    }
    Written spoiled(kernels, given, 2, random);
    const int64_t position = random.one_in(2) ? given.first() + lost : random.below(given.length);
    spoiled.spoil(position);
    const Buffer<float> after = whole(spoiled, given, 3, false);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t index = given.first() + row;
        if (position > index || (given.window > 0 && position <= index - given.window))
            checks.unseen.same(after.data() + row * width, alone.data() + row * width, width);
        else
            checks.unseen.that(std::isnan(after[row * width]), "NaN from a value with NaN");
    }
}

}  // namespace

void check_attention_rows(const Kernels& kernels, Random random, Effort effort, Report& report) {
    const Checks checks{report.check("attention: rows alone and in company"),
                        report.check("attention: in place, scattered and as trees"),
                        report.check("attention: NaN that a row does not see"),
                        report.check("attention: NaN of one row")};
    for (int64_t i = 0; i < effort.of(40); ++i) {
        const int64_t length = random.between(1, i % 4 == 0 ? 700 : 200);
        const int64_t rows = std::min(length, i % 8 == 0 ? random.between(30, 70) : random.between(1, 12));
        check_text(kernels, checks, Text(random_heads(random), length, rows, random), random);
    }
}

}  // namespace stretto::selftest
