// The Python face of the native library. It takes raw pointers, as whole numbers, and is not linked against PyTorch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "choose/shaped.hpp"
#include "machine/instruction_set.hpp"
#include "machine/kernels.hpp"
#include "machine/measure.hpp"
#include "machine/pool.hpp"
#include "pass/program.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace stretto;

// Raised with every change of a signature below; stretto/kernels/native.py refuses a library of another age.
constexpr int abi_version = 6;

using Address = std::uintptr_t;
using Release = nb::call_guard<nb::gil_scoped_release>;

namespace {

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// (kind, weight, bias, size of both, eps): kind 0 is none.
using NormWords = std::tuple<int, Address, Address, int64_t, double>;

Norm norm_of(Program& program, const NormWords& words) {
    const auto& [kind, weight, bias, size, eps] = words;
    return {static_cast<Normal>(kind), program.keep(at<const float>(weight), size),
            program.keep(at<const float>(bias), size), static_cast<float>(eps)};
}

template <class T>
int add(Program& program, T op) {
    return program.add(std::make_unique<T>(std::move(op)));
}

template <class T>
T with(T op, auto&& set) {
    set(op);
    return op;
}

// Waking the threads costs more than a hundred thousand elements take.
template <class Body>
void each_of(std::size_t rows, int64_t vocabulary, Body&& body) {
    if (rows < 2 || static_cast<int64_t>(rows) * vocabulary < 131072) {
        for (std::size_t number = 0; number < rows; number++) body(static_cast<int64_t>(number));
    } else {
        Pool::instance().run([&](Worker& worker) { worker.each(static_cast<int64_t>(rows), body); });
    }
}

// (temperature, top-k, top-p, least score)
using FilterWords = std::tuple<float, int64_t, double, float>;

Filter filter_of(const FilterWords& words) {
    const auto& [temperature, count, share, least] = words;
    return {temperature, count, share, least};
}

// (tokens, scores)
using ChosenWords = std::pair<std::vector<int64_t>, std::vector<float>>;

ChosenWords words_of(const std::vector<Chosen>& chosen) {
    ChosenWords words;
    for (const Chosen& each : chosen) {
        words.first.push_back(each.token);
        words.second.push_back(each.value);
    }
    return words;
}

// Calls body(number, row, filter, room) for each of the rows.
template <class Body>
void each_row(Address scores, int64_t stride, int64_t vocabulary, const std::vector<int64_t>& rows,
              const std::vector<FilterWords>& filters, const std::vector<uint64_t>& keys, Body&& body) {
    each_of(rows.size(), vocabulary, [&](int64_t number) {
        thread_local std::vector<float> room;
        const Filter asked = filter_of(filters[number]);
        const ChooseRow row{at<const float>(scores) + rows[number] * stride, asked.temperature, keys[number]};
        body(number, row, asked, room);
    });
}

ChosenWords choose(Address scores, int64_t stride, int64_t vocabulary, const std::vector<int64_t>& rows,
                   const std::vector<FilterWords>& filters, const std::vector<uint64_t>& keys) {
    std::vector<Chosen> chosen(rows.size());
    each_row(scores, stride, vocabulary, rows, filters, keys,
             [&](int64_t number, const ChooseRow& row, const Filter& asked, std::vector<float>& room) {
                 chosen[number] = choose_shaped(row, vocabulary, asked, room);
             });
    return words_of(chosen);
}

void filter(Address scores, int64_t stride, int64_t vocabulary, const std::vector<FilterWords>& filters) {
    each_of(filters.size(), vocabulary, [&](int64_t number) {
        std::vector<float> room(2 * vocabulary);
        float* row = at<float>(scores) + number * stride;
        kernels().choose.filter(row, vocabulary, filter_of(filters[number]), room.data());
    });
}

std::vector<ChosenWords> top(Address scores, int64_t stride, int64_t vocabulary, const std::vector<int64_t>& rows,
                             const std::vector<FilterWords>& filters, const std::vector<uint64_t>& keys,
                             int64_t count) {
    std::vector<std::vector<Chosen>> best(rows.size(), std::vector<Chosen>(count));
    each_row(scores, stride, vocabulary, rows, filters, keys,
             [&](int64_t number, const ChooseRow& row, const Filter& asked, std::vector<float>& room) {
                 int64_t found = 0;
                 const ChooseRow narrow = shaped(row, vocabulary, asked, room);
                 kernels().choose.top(narrow, vocabulary, count, best[number].data(), &found);
                 best[number].resize(found);
             });
    std::vector<ChosenWords> words;
    for (const std::vector<Chosen>& each : best) words.push_back(words_of(each));
    return words;
}

void move_rows(Address keys, Address values, int64_t layers, int64_t layer_bytes, bool bf16, int64_t kv_heads,
               int64_t head_size, const std::vector<int64_t>& from, const std::vector<int64_t>& to) {
    const LaneMemory memory{at<std::byte>(keys), at<std::byte>(values), layer_bytes, bf16, kv_heads, head_size};
    for (int64_t place = 0; place < layers; place++)
        for (std::size_t row = 0; row < from.size(); row++) move_row(memory.layer(place), from[row], to[row]);
}

void bind_ops(nb::class_<Program>& program) {
    program
        .def(
            "embed",
            [](Program& self, Address table, const PackedMatrix* head, bool bf16, int64_t width, float factor,
               Address positions, int hidden) {
                return add(self, with(Embed{}, [&](Embed& op) {
                               op.table = at<const void>(table), op.head = head == nullptr ? nullptr : &head->matrix;
                               op.bf16 = bf16, op.width = width, op.factor = factor;
                               op.positions = at<const float>(positions), op.hidden = hidden;
                           }));
            },
            "table"_a, "head"_a.none(), "bf16"_a, "width"_a, "factor"_a, "positions"_a, "hidden"_a)
        .def("prepare",
             [](Program& self, const NormWords& norm, int in, int64_t width, int activations) {
                 return add(self, with(Prepare{}, [&](Prepare& op) {
                                op.norm = norm_of(self, norm), op.in = in, op.width = width;
                                op.activations = static_cast<Activations>(activations);
                            }));
             })
        .def("multiply",
             [](Program& self, const PackedMatrix& matrix, int out, bool adds) {
                 return add(self, with(Multiply{},
                                       [&](Multiply& op) { op.matrix = &matrix.matrix, op.out = out, op.add = adds; }));
             })
        .def("add_normed",
             [](Program& self, const NormWords& norm, int branch, int hidden, int64_t width) {
                 return add(self, with(AddNormed{}, [&](AddNormed& op) {
                                op.norm = norm_of(self, norm), op.branch = branch, op.hidden = hidden, op.width = width;
                            }));
             })
        .def("heads",
             [](Program& self, int fused, int64_t query, int64_t key, int64_t value, int64_t heads,
                const NormWords& query_norm, const NormWords& key_norm, bool together, bool behind_rope, int rope,
                int lane, int64_t place) {
                 return add(self, with(Heads{}, [&](Heads& op) {
                                op.fused = fused, op.query = query, op.key = key, op.value = value, op.heads = heads;
                                op.query_norm = norm_of(self, query_norm), op.key_norm = norm_of(self, key_norm);
                                op.together = together, op.behind_rope = behind_rope;
                                op.rope = rope, op.lane = lane, op.place = place;
                            }));
             })
        .def("attend",
             [](Program& self, int fused, int out, int64_t query, int64_t heads, int lane, int64_t place, float scale,
                float cap, int64_t window) {
                 return add(self, with(AttendRows{}, [&](AttendRows& op) {
                                op.fused = fused, op.out = out, op.query = query, op.heads = heads, op.lane = lane;
                                op.place = place, op.scale = scale, op.cap = cap, op.window = window;
                            }));
             })
        .def("activate",
             [](Program& self, int activation, int in, int64_t gate, int64_t up, int64_t width, int activations) {
                 return add(self, with(Activate{}, [&](Activate& op) {
                                op.activation = static_cast<Activation>(activation), op.in = in, op.gate = gate,
                                op.up = up;
                                op.width = width, op.activations = static_cast<Activations>(activations);
                            }));
             })
        .def("mixture",
             [](Program& self, const std::vector<const PackedMatrix*>& inputs,
                const std::vector<const PackedMatrix*>& outputs, int64_t gate, int64_t up, int64_t chosen,
                bool normalised, int activation, int64_t width, int64_t inner_width, const std::vector<int>& buffers,
                bool adds) {
                 return add(self, with(Mixture{}, [&](Mixture& op) {
                                for (std::size_t i = 0; i < inputs.size(); i++)
                                    op.experts.push_back({&inputs[i]->matrix, &outputs[i]->matrix, gate, up});
                                op.chosen = chosen, op.normalised = normalised, op.width = width,
                                op.inner_width = inner_width;
                                op.activation = static_cast<Activation>(activation), op.add = adds;
                                op.routes = buffers.at(0), op.inner = buffers.at(1), op.part = buffers.at(2);
                                op.total = buffers.at(3), op.out = buffers.at(4);
                            }));
             })
        .def("logits", [](Program& self, const NormWords& norm, int hidden, int64_t width, int64_t vocabulary,
                          const PackedMatrix& head, float factor, float cap) {
            return add(self, with(Logits{}, [&](Logits& op) {
                           op.norm = norm_of(self, norm), op.hidden = hidden, op.width = width,
                           op.vocabulary = vocabulary;
                           op.head = &head.matrix, op.factor = factor, op.cap = cap;
                       }));
        });
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Stretto's kernels in C++";
    module.def("abi_version", [] { return abi_version; }, "The version of this library's signatures.");
    module.def("instruction_set", &stretto::instruction_set,
               "The widest instruction set of this machine that kernels may use: 'avx512', 'avx2' or 'generic'.");
    module.def("path", [] { return kernels().name; }, "The path in use: STRETTO_ISA's, else the machine's widest.");
    module.def("sums_groups", [] { return kernels().linear.raises; },
               "Whether int8 matrices have sums of their groups in memory beside them.");
    module.def(
        "set_threads", [](int threads) { Pool::instance().resize(threads); }, "Threads of every pass from now on.");
    module.def("threads", [] { return Pool::instance().threads(); });
    module.def("seconds", [] { return seconds_inside(); }, "Seconds spent in passes since the process began.");
    module.def("streaming_read", &streaming_read, "bytes"_a, "repeats"_a, Release(),
               "GB/s of a streaming read by all threads.");
    module.def("peak", &peak, "kind"_a, Release(), "Operations per second of all threads: 0 fp32, 1 bf16, 2 int8.");
    module.def("choose", &choose, Release());
    module.def("filter", &filter, Release());
    module.def("top", &top, Release());
    module.def("log_sum", [](Address scores, int64_t vocabulary) {
        return kernels().choose.log_sum(at<const float>(scores), vocabulary);
    });
    module.def("move_rows", &move_rows, Release());

    nb::class_<PackedMatrix>(module, "Matrix")
        .def_prop_ro("panels", [](const PackedMatrix& self) { return self.matrix.panels; })
        .def_prop_ro("bytes", [](const PackedMatrix& self) { return self.bytes; });
    auto program = nb::class_<Program>(module, "Program");
    program.def(nb::init<>())
        .def("buffer", &Program::buffer)
        .def(
            "matrix",
            [](Program& self, int layout, int activations, int64_t panels, int64_t inputs, int shards) {
                return self.matrix(static_cast<WeightLayout>(layout), static_cast<Activations>(activations), panels,
                                   inputs, shards);
            },
            nb::rv_policy::reference_internal)
        .def(
            "fill",
            [](Program& self, PackedMatrix& matrix, int64_t panel, int64_t outputs, Address values, Address scales,
               Address zeros, Address bias) {
                self.fill(matrix, panel, outputs, at<const void>(values), at<const void>(scales),
                          at<const uint8_t>(zeros), at<const float>(bias));
            },
            Release())
        .def("rope", &Program::rope)
        .def("lane", &Program::lane)
        .def("bind",
             [](Program& self, int lane, Address keys, Address values, int64_t layer_bytes, bool bf16, int64_t kv_heads,
                int64_t head_size) {
                 self.bind(lane, {at<std::byte>(keys), at<std::byte>(values), layer_bytes, bf16, kv_heads, head_size});
             })
        .def("__len__", &Program::size)
        .def("start", &Program::start, Release())
        .def("want", [](Program& self, std::vector<int64_t> rows,
                        Address logits) { self.want(std::move(rows), at<float>(logits)); })
        .def("run", &Program::run, Release())
        .def(
            "ask",
            [](Program& self, int op, const std::vector<int64_t>& script, Address bias, int64_t bias_heads,
               Address mass) { self.ask(op, script, at<const float>(bias), bias_heads, at<float>(mass)); },
            Release())
        .def(
            "forward",
            [](Program& self, std::vector<int64_t> tokens, std::vector<int64_t> rope, std::vector<int64_t> index,
               std::vector<std::vector<int64_t>> slots, const std::vector<std::vector<int64_t>>& scripts,
               std::vector<int64_t> wanted, Address logits) {
                self.start(std::move(tokens), std::move(rope), std::move(index), std::move(slots), scripts);
                self.want(std::move(wanted), at<float>(logits));
                self.run(0, self.size());
            },
            Release())
        .def("read", [](Program& self, int buffer, int64_t column, int64_t width, int64_t first, int64_t rows,
                        Address out) { self.copy(buffer, column, width, first, rows, at<float>(out), false); })
        .def("write", [](Program& self, int buffer, int64_t column, int64_t width, int64_t first, int64_t rows,
                         Address in) { self.copy(buffer, column, width, first, rows, at<float>(in), true); });
    bind_ops(program);
}
