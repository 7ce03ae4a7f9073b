// ConvCRF on a CPU, with the results of app/method/crf.py and its terms.
//
// A round has two passes. Messages pass between blurred pixels: a sum over the filter for each, with the weights of 8
// neighbouring pixels in one vector. Then each row of blurred pixels gets its new probabilities: the full resolution is
// read once (the evidence), and all that is computed there stays in the cache.
//
// The evidence is the probabilities themselves and not their log-softmax: the two differ by a constant per pixel, the
// same for all classes. The first message has it too, and softmax removes it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

// One build for all processors of a kind: the loader takes the variant that fits.
#if defined(__x86_64__) && defined(__ELF__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE [[gnu::always_inline]] inline

namespace {

constexpr int LANES = 8;         // pixels in a vector: 16 are no faster with AVX-512, and four times slower without
constexpr int TILE = 4 * LANES;  // pixels whose class probabilities are computed together
constexpr int CLASSES = 6;       // classes whose messages are summed together: their sums fit into the registers
constexpr int ROWS = 8;          // rows of blurred pixels that a thread takes at once
constexpr float LOST = 1e-6f;    // a class that is nowhere more probable than this is dropped

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

template <class V, class Element>
INLINE V load(const Element* from) {
    V values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

INLINE void store(float* to, Vector values) {
    std::memcpy(to, &values, sizeof values);
}

INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// exp of values ≤ 0, with an error of 2e-7 of the result; 1e-38 for all below -87.
INLINE Vector exponential(Vector x) {
    const Vector zero = {};
    x = larger(x, zero - 87.0f);
    const Vector shift = zero + 12582912.0f;  // 1.5 · 2²³: the sum's last bits are the nearest integer
    const Vector shifted = x * 1.44269504f + shift;
    const Vector power = shifted - shift;
    const Vector rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
    Vector series = zero + 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * (rest * rest) + rest + 1.0f;
    const Integers exponent = ((Integers)shifted - (Integers)shift) << 23;
    return (Vector)((Integers)series + exponent);
}

int rounded_up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// Threads that work on the rows of one call. A thread that shares its core with another process takes fewer rows.
class Team {
public:
    explicit Team(int threads) : start_(threads), end_(threads) {
        for (int index = 1; index < threads; ++index) try {
                helpers_.emplace_back([this] { help(); });
            } catch (const std::system_error&) {  // the process may not have more threads: those it has do the work
                start_.arrive_and_drop();
                end_.arrive_and_drop();
            }
    }
    ~Team() {
        work_ = nullptr;
        start_.arrive_and_wait();
        for (std::thread& helper : helpers_) helper.join();
    }

    // Call work(first, last) for all rows; returns when all are done.
    void each(int rows, std::function<void(int, int)> work) {
        rows_ = rows;
        next_ = 0;
        work_ = std::move(work);
        start_.arrive_and_wait();
        take();
        end_.arrive_and_wait();
        if (failed_) throw std::bad_alloc();
    }

private:
    void help() {
        for (;;) {
            start_.arrive_and_wait();
            if (!work_) return;
            take();
            end_.arrive_and_wait();
        }
    }
    void take() try {
        for (int first; (first = next_.fetch_add(ROWS)) < rows_;) work_(first, std::min(first + ROWS, rows_));
    } catch (const std::bad_alloc&) {
        failed_ = true;
    }

    std::barrier<> start_, end_;
    std::atomic<int> next_{0};
    std::atomic<bool> failed_{false};
    int rows_ = 0;
    std::function<void(int, int)> work_;
    std::vector<std::thread> helpers_;
};

// Pooling and interpolation along one axis, between pixels and blurred pixels: `Axis` of crf.py.
struct Axis {
    int length, blur, padding, count;

    Axis(int length, int blur)
        : length(length), blur(blur), padding(((blur - length % blur) % blur + 1) / 2),
          count((length + blur - 1) / blur) {}

    int first(int place) const { return std::max(0, place * blur - padding); }
    int last(int place) const { return std::min(length, (place + 1) * blur - padding); }
    float centre(int place) const { return 0.5f * (first(place) + last(place) - 1); }

    // The two blurred pixels that a pixel lies between, and the share of the second.
    struct Between {
        int before, after;
        float share;
    };
    Between between(int pixel) const {
        const float place = std::max(0.0f, (pixel + padding + 0.5f) / blur - 0.5f);
        const int before = std::min(int(place), count - 1);
        const float share = place - before;
        return {before, share > 0 ? std::min(before + 1, count - 1) : before, share};
    }
};

// Interpolation of a vector of pixels: of `values + start`, the elements `before` and `after`.
struct Group {
    int start;
    int32_t before[LANES], after[LANES];
    float share[LANES];
};

std::vector<Group> groups(const Axis& axis) {
    std::vector<Group> groups(rounded_up(axis.length, TILE) / LANES);
    for (size_t group = 0; group < groups.size(); ++group) {
        auto pixel = [&](int lane) { return axis.between(std::min(int(group) * LANES + lane, axis.length - 1)); };
        const int start = pixel(0).before;
        groups[group].start = start;
        for (int lane = 0; lane < LANES; ++lane) {
            const Axis::Between place = pixel(lane);
            groups[group].before[lane] = place.before - start;
            groups[group].after[lane] = place.after - start;
            groups[group].share[lane] = place.share;
        }
    }
    return groups;
}

// Maps of blurred pixels with zeros around them, as far as the filter reaches.
struct Padded {
    int reach, stride, height;
    std::vector<float> values;

    Padded(int maps, int height, int width, int reach)
        : reach(reach), stride(rounded_up(width, LANES) + 2 * reach), height(height + 2 * reach),
          values(size_t(maps) * this->height * stride + LANES) {}

    // Pixel 0 of a row; rows and pixels from -reach on exist.
    float* row(int map, int y) { return &values[(size_t(map) * height + y + reach) * stride + reach]; }
};

struct Crf {
    int classes, height, width, size, reach, padded_width;
    float message_weight, position_weight, colour_weight;
    const float* evidence;
    Axis rows, columns;
    std::vector<Group> across;
    std::vector<float> row_nearness, column_nearness, weights, message;
    Padded colours, prediction;
    std::vector<int> alive;

    size_t pixels() const { return size_t(height) * width; }
    float* weight_row(int y, int dy, int dx) {
        return &weights[(size_t(y) * size * size + dy * size + dx) * padded_width];
    }
    float* message_row(int c, int y) {
        return &message[(size_t(c) * rows.count + y) * (padded_width + LANES)];
    }
};

// exp(−(a − b)² / 2) of each place with those in reach, in deviations.
std::vector<float> nearness(const Axis& axis, int size, int stride, float deviation) {
    std::vector<float> near(size_t(size) * stride);
    for (int offset = 0; offset < size; ++offset)
        for (int place = 0; place < axis.count; ++place) {
            const int other = place + offset - size / 2;
            if (other < 0 || other >= axis.count) continue;  // no prediction there
            const float distance = (axis.centre(place) - axis.centre(other)) / deviation;
            near[size_t(offset) * stride + place] = std::exp(-0.5f * distance * distance);
        }
    return near;
}

// Means of the pixels of each blurred pixel, of one row.
INLINE void pool(const float* sums, const Axis& columns, int rows, float* out) {
    for (int x = 0; x < columns.count; ++x) {
        const int first = columns.first(x), last = columns.last(x);
        float sum = 0;
        for (int pixel = first; pixel < last; ++pixel) sum += sums[pixel];
        out[x] = sum / (rows * (last - first));
    }
}

// Pool full-resolution maps into blurred ones.
FOR_EACH_PROCESSOR
void pool_rows(const Crf& crf, const float* maps, int count, float scale, Padded& out, int first, int last) {
    std::vector<float> sums(crf.width);
    for (int map = 0; map < count; ++map)
        for (int y = first; y < last; ++y) {
            const int top = crf.rows.first(y), bottom = crf.rows.last(y);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int row = top; row < bottom; ++row) {
                const float* from = maps + map * crf.pixels() + size_t(row) * crf.width;
                for (int x = 0; x < crf.width; ++x) sums[x] += scale * from[x];
            }
            pool(sums.data(), crf.columns, bottom - top, out.row(map, y));
        }
}

// Weights of all neighbours: position plus colour kernel, not normalised. Outside the image they do not matter.
FOR_EACH_PROCESSOR
void weigh_rows(Crf& crf, int first, int last) {
    for (int y = first; y < last; ++y)
        for (int dy = 0; dy < crf.size; ++dy)
            for (int dx = 0; dx < crf.size; ++dx) {
                float* out = crf.weight_row(y, dy, dx);
                const float vertical = crf.position_weight * crf.row_nearness[dy * crf.rows.count + y];
                const float* horizontal = &crf.column_nearness[dx * crf.padded_width];
                for (int x = 0; x < crf.padded_width; x += LANES) {
                    Vector distance = {};
                    for (int channel = 0; channel < 3; ++channel) {
                        const Vector own = load<Vector>(crf.colours.row(channel, y) + x);
                        const Vector other =
                            load<Vector>(crf.colours.row(channel, y + dy - crf.reach) + x + dx - crf.reach);
                        distance += (own - other) * (own - other);
                    }
                    const Vector likeness = exponential(-0.5f * distance);
                    store(out + x, vertical * load<Vector>(horizontal + x) + crf.colour_weight * likeness);
                }
            }
}

// Messages of some classes to one row.
template <int COUNT>
INLINE void pass_row(Crf& crf, int first_class, int y) {
    for (int x = 0; x < crf.columns.count; x += LANES) {
        Vector sums[COUNT] = {};
        for (int dy = 0; dy < crf.size; ++dy) {
            const float* from[COUNT];
            for (int c = 0; c < COUNT; ++c)
                from[c] = crf.prediction.row(crf.alive[first_class + c], y + dy - crf.reach) + x - crf.reach;
            const float* weights = crf.weight_row(y, dy, 0) + x;
            for (int dx = 0; dx < crf.size; ++dx) {
                const Vector weight = load<Vector>(weights + size_t(dx) * crf.padded_width);
                for (int c = 0; c < COUNT; ++c) sums[c] += weight * load<Vector>(from[c] + dx);
            }
        }
        for (int c = 0; c < COUNT; ++c) store(crf.message_row(crf.alive[first_class + c], y) + x, sums[c]);
    }
}

FOR_EACH_PROCESSOR
void pass_rows(Crf& crf, int first, int last) {
    const int classes = int(crf.alive.size());
    for (int c = 0; c < classes; c += CLASSES)
        for (int y = first; y < last; ++y) switch (std::min(CLASSES, classes - c)) {
                case 1: pass_row<1>(crf, c, y); break;
                case 2: pass_row<2>(crf, c, y); break;
                case 3: pass_row<3>(crf, c, y); break;
                case 4: pass_row<4>(crf, c, y); break;
                case 5: pass_row<5>(crf, c, y); break;
                default: pass_row<CLASSES>(crf, c, y);
            }
}

// Interpolate a row of messages to pixels.
INLINE void widen(const std::vector<Group>& across, const float* message, float weight, float* out) {
    for (size_t group = 0; group < across.size(); ++group) {
        const Group& g = across[group];
        const Vector values = load<Vector>(message + g.start);
        const Vector before = __builtin_shuffle(values, load<Integers>(g.before));
        const Vector after = __builtin_shuffle(values, load<Integers>(g.after));
        store(out + LANES * group, weight * (before + load<Vector>(g.share) * (after - before)));
    }
}

// The values of a tile of `count` pixels that are there; zeros behind them.
INLINE void load_tile(const float* from, int count, Vector values[TILE / LANES]) {
    if (count == TILE) {
        for (int v = 0; v < TILE / LANES; ++v) values[v] = load<Vector>(from + v * LANES);
    } else {
        std::memset(values, 0, sizeof(float) * TILE);
        std::memcpy(values, from, sizeof(float) * count);
    }
}

// New probabilities: softmax of evidence and message. Pooled into the prediction, or written to `out` if given.
FOR_EACH_PROCESSOR
void answer_rows(Crf& crf, float* out, int first, int last) {
    constexpr int vectors = TILE / LANES;
    const int classes = int(crf.alive.size()), stride = rounded_up(crf.width, TILE);
    const size_t plane = size_t(classes) * stride;
    const float own_weight = 1 - crf.message_weight;
    std::vector<float> near(3 * plane), sums(out ? 0 : plane), tile(size_t(classes) * TILE);
    int next = std::max(0, first - 1);  // rows of messages before this one are in `near`, at their number modulo 3
    for (int y = first; y < last; ++y) {
        for (; next <= std::min(y + 1, crf.rows.count - 1); ++next)
            for (int c = 0; c < classes; ++c)
                widen(crf.across, crf.message_row(crf.alive[c], next), crf.message_weight,
                      &near[next % 3 * plane + size_t(c) * stride]);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int pixel = crf.rows.first(y); pixel < crf.rows.last(y); ++pixel) {
            const Axis::Between place = crf.rows.between(pixel);
            const float *before = &near[place.before % 3 * plane], *after = &near[place.after % 3 * plane];
            for (int x = 0; x < crf.width; x += TILE) {
                const int count = std::min(TILE, crf.width - x);
                Vector most[vectors], total[vectors] = {};
                const size_t start = size_t(pixel) * crf.width + x;
                for (int c = 0; c < classes; ++c) {
                    Vector values[vectors];
                    load_tile(crf.evidence + crf.alive[c] * crf.pixels() + start, count, values);
                    for (int v = 0; v < vectors; ++v) {
                        const size_t at = size_t(c) * stride + x + v * LANES;
                        values[v] = own_weight * values[v] + (1 - place.share) * load<Vector>(before + at) +
                                    place.share * load<Vector>(after + at);
                        most[v] = c ? larger(most[v], values[v]) : values[v];
                        store(&tile[size_t(c) * TILE + v * LANES], values[v]);
                    }
                }
                for (int c = 0; c < classes; ++c)
                    for (int v = 0; v < vectors; ++v) {
                        float* at = &tile[size_t(c) * TILE + v * LANES];
                        const Vector value = exponential(load<Vector>(at) - most[v]);
                        total[v] += value;
                        store(at, value);
                    }
                for (int v = 0; v < vectors; ++v) total[v] = 1.0f / total[v];
                for (int c = 0; c < classes; ++c) {
                    float* at = &tile[size_t(c) * TILE];
                    float* sum = out ? at : &sums[size_t(c) * stride + x];
                    for (int v = 0; v < vectors; ++v) {
                        const Vector value = load<Vector>(at + v * LANES) * total[v];
                        store(sum + v * LANES, out ? value : load<Vector>(sum + v * LANES) + value);
                    }
                    if (out) std::memcpy(out + crf.alive[c] * crf.pixels() + start, at, sizeof(float) * count);
                }
            }
        }
        if (!out)
            for (int c = 0; c < classes; ++c)
                pool(&sums[size_t(c) * stride], crf.columns, crf.rows.last(y) - crf.rows.first(y),
                     crf.prediction.row(crf.alive[c], y));
    }
}

// Classes that are improbable everywhere are left out of the next rounds.
void drop_lost(Crf& crf) {
    std::erase_if(crf.alive, [&](int c) {
        for (int y = 0; y < crf.rows.count; ++y) {
            const float* row = crf.prediction.row(c, y);
            if (*std::max_element(row, row + crf.columns.count) > LOST) return false;
        }
        return true;
    });
}

// The fields of `CrfParameters`, in its order.
struct Parameters {
    int iterations, filter_size, blur;
    float message_weight, position_deviation, position_weight, colour_deviation, colour_weight;
};

// Refine class probabilities [class, height, width] by colours [3, height, width] into `refined`, which is zero.
void refine(const float* class_map, const float* colours, float* refined, int classes, int height, int width,
            const Parameters& p, int threads) {
    const Axis rows(height, p.blur), columns(width, p.blur);
    const int reach = p.filter_size / 2, padded_width = rounded_up(columns.count, LANES);
    Crf crf{
        classes, height, width, p.filter_size, reach, padded_width,
        p.message_weight, p.position_weight, p.colour_weight,
        class_map, rows, columns, groups(columns),
        nearness(rows, p.filter_size, rows.count, p.position_deviation),
        nearness(columns, p.filter_size, padded_width, p.position_deviation),
        std::vector<float>(size_t(rows.count) * p.filter_size * p.filter_size * padded_width),
        std::vector<float>(size_t(classes) * rows.count * (padded_width + LANES)),
        Padded(3, rows.count, columns.count, reach),
        Padded(classes, rows.count, columns.count, reach),
        std::vector<int>(classes),
    };
    std::iota(crf.alive.begin(), crf.alive.end(), 0);
    Team team(std::clamp(threads, 1, (rows.count + ROWS - 1) / ROWS));
    team.each(rows.count, [&](int first, int last) {
        pool_rows(crf, colours, 3, 1 / p.colour_deviation, crf.colours, first, last);
        pool_rows(crf, class_map, classes, 1, crf.prediction, first, last);
    });
    team.each(rows.count, [&](int first, int last) { weigh_rows(crf, first, last); });
    for (int round = 1; round <= p.iterations; ++round) {
        team.each(rows.count, [&](int first, int last) { pass_rows(crf, first, last); });
        float* out = round == p.iterations ? refined : nullptr;
        team.each(rows.count, [&](int first, int last) { answer_rows(crf, out, first, last); });
        if (!out) drop_lost(crf);
    }
}

// Buffers of an argument list, given back at the end.
struct Buffers {
    Py_buffer class_map{}, colours{}, refined{};
    ~Buffers() {
        for (Py_buffer* buffer : {&class_map, &colours, &refined})
            if (buffer->obj) PyBuffer_Release(buffer);
    }
};

PyObject* conv_crf(PyObject*, PyObject* arguments) {
    Buffers b;
    Parameters p;
    int classes, height, width, threads;
    if (!PyArg_ParseTuple(arguments, "y*y*w*(iii)(iiifffff)i", &b.class_map, &b.colours, &b.refined, &classes, &height,
                          &width, &p.iterations, &p.filter_size, &p.blur, &p.message_weight, &p.position_deviation,
                          &p.position_weight, &p.colour_deviation, &p.colour_weight, &threads))
        return nullptr;
    const Py_ssize_t plane = Py_ssize_t(sizeof(float)) * height * width;
    if (classes < 1 || height < 1 || width < 1 || p.iterations < 1 || p.filter_size < 1 || p.filter_size % 2 == 0 ||
        p.blur < 1 || b.class_map.len != classes * plane || b.refined.len != classes * plane ||
        b.colours.len != 3 * plane) {
        PyErr_SetString(PyExc_ValueError,
                        "expected float32 arrays of the given shape, one round or more, an odd filter");
        return nullptr;
    }
    bool enough = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        refine(static_cast<const float*>(b.class_map.buf), static_cast<const float*>(b.colours.buf),
               static_cast<float*>(b.refined.buf), classes, height, width, p, threads);
    } catch (const std::bad_alloc&) {
        enough = false;
    }
    Py_END_ALLOW_THREADS;
    if (!enough) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef functions[] = {{"conv_crf", conv_crf, METH_VARARGS, "See _conv_crf.pyi."}, {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_conv_crf", nullptr, 0, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__conv_crf() { return PyModuleDef_Init(&module); }
