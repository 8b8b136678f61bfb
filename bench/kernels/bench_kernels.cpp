// Speed of the kernels on the shapes of SmolLM2-135M: one JSON object a line, with the median and the spread of rounds.
//
//   bench_kernels [--only NAME[,NAME]] [--level LEVEL[,LEVEL]] [--threads N[,N]] [--rounds N] [--noisy 1]
//
// It refuses a machine that is busy with other things unless --noisy is given, which every row then says; of such rows
// only the least processor time means something. It is given on one thread alone: of several, the clock of the process
// may lag behind those that run at the moment it is read.
//
// names: memory (plain reading of as many bytes, the ceiling of what follows), weights (all products of
// one decoded token), batch (the same for several rows), adapter (the same with a low-rank update of every matrix
// of a layer and without, in turns), products (tokens a second through all matrices of all layers by the number of rows
// and by what multiplies them: what layers/linear.cpp chooses between), unpack, attend_step, attend_prefill,
// observe_step, observe_prefill, codec, rope, exp
#include "mneme/kernels/attend.h"
#include "mneme/kernels/codec.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/observe.h"
#include "mneme/kernels/quantized.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include "bench/list.h"
#include "bench/machine/fbgemm.h"
#include "bench/machine/other_work.h"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace mneme;           // NOLINT(google-build-using-namespace)
using namespace mneme::kernels;  // NOLINT(google-build-using-namespace)

constexpr std::int64_t kLayers = 30, kModel = 576, kInner = 1536, kHeads = 9, kKvHeads = 3,
                       kWidth = 64, kVocabulary = 49152;

int g_rounds = 11;
bool g_noisy = false;

struct Timing {
  double median_s, low_s, high_s, least_s;  // with quartiles
  double least_processor_s;
};

class Rounds {
 public:
  template <class Work>
  void add(const Work& work) {
    const std::clock_t processor = std::clock();
    const auto begin = std::chrono::steady_clock::now();
    work();
    processor_s_ =
        std::min(processor_s_, static_cast<double>(std::clock() - processor) / CLOCKS_PER_SEC);
    seconds_.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  [[nodiscard]] Timing timing() {
    std::sort(seconds_.begin(), seconds_.end());
    const auto at = [&](double q) {
      return seconds_[static_cast<std::size_t>(q * static_cast<double>(seconds_.size() - 1))];
    };
    return {at(0.5), at(0.25), at(0.75), seconds_.front(), processor_s_};
  }

 private:
  std::vector<double> seconds_;
  double processor_s_ = 1e30;
};

template <class Work>
Timing measure(const Work& work) {
  work();
  Rounds rounds;
  for (int i = 0; i < g_rounds; ++i) rounds.add(work);
  return rounds.timing();
}

// `amount` is what one run does, in `unit`: GB, GFLOP, Gnumber, Mpair.
void report(const std::string& what, const std::string& spec, const Timing& t, double amount,
            const std::string& unit) {
  const std::string processor =
      at::get_num_threads() == 1 ? std::to_string(1e3 * t.least_processor_s) : "null";
  std::printf(
      "{\"bench\":\"%s\",\"spec\":\"%s\",\"level\":\"%s\",\"threads\":%d,\"median_ms\":%.4f,"
      "\"quartiles_ms\":[%.4f,%.4f],"
      "\"least_ms\":%.4f,\"processor_ms\":%s,\"noisy\":%s,\"rate\":%.2f,\"unit\":\"%s/"
      "s\",\"rounds\":%d,\"cpu\":\"%s\"}\n",
      what.c_str(), spec.c_str(), std::string(name(level())).c_str(), at::get_num_threads(),
      1e3 * t.median_s, 1e3 * t.low_s, 1e3 * t.high_s, 1e3 * t.least_s, processor.c_str(),
      g_noisy ? "true" : "false", amount / t.median_s, unit.c_str(), g_rounds, cpu_model().c_str());
  std::fflush(stdout);
}

std::vector<float> numbers(std::int64_t n) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> pool(65521), out(static_cast<std::size_t>(n));
  for (float& x : pool) x = normal(generator);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = pool[i % pool.size()];
  return out;
}

// Random codes with scales of one: speed does not depend on the numbers, as long as none is NaN or subnormal.
std::vector<std::uint8_t> random_rows(WeightType type, std::int64_t rows, std::int64_t K) {
  std::mt19937 generator(2);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * row_bytes(type, K)));
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(generator());
  const std::uint16_t one = 0x3c00;
  const auto block = static_cast<std::size_t>(block_bytes(type));
  for (std::size_t at = 0; is_quantized(type) && at < bytes.size(); at += block) {
    std::memcpy(bytes.data() + at, &one, 2);
    if (type == WeightType::q4_1) std::memcpy(bytes.data() + at + 2, &one, 2);
  }
  return bytes;
}

// A low-rank update of every matrix of the layers, in half precision: each matrix has its own memory.
struct Updates {
  static constexpr std::int64_t kRank = 12;
  std::vector<std::vector<std::uint16_t>> numbers;
  std::vector<LowRankPart> parts;  // seven a layer, in the order in which Weights::run meets them
  double bytes = 0;

  Updates() {
    const auto some = [&](std::int64_t n) {
      numbers.emplace_back(static_cast<std::size_t>(n), 0x1c00);  // 1/256
      bytes += 2.0 * static_cast<double>(n);
      return numbers.back().data();
    };
    const auto add = [&](std::int64_t N, std::int64_t K) {
      const auto* a = some(kRank * K);
      parts.push_back({WeightType::f16, a, some(packed_low_rank_numbers(N, kRank)), kRank, 2.f});
    };
    for (std::int64_t i = 0; i < kLayers; ++i) {
      add(kModel, kModel);
      add(kKvHeads * kWidth, kModel);
      add(kKvHeads * kWidth, kModel);
      add(kModel, kModel);
      add(kInner, kModel);
      add(kInner, kModel);
      add(kModel, kInner);
    }
  }
};

struct Weights {
  /// As in a file, and as products with 8-bit rows read it.
  struct Matrix {
    WeightType type;
    std::vector<std::uint8_t> rows;
    PackedMatrix packed;
    Matrix(WeightType type_, std::int64_t N, std::int64_t K)
        : type(type_), rows(random_rows(type, N, K)), packed(type, rows.data(), N, K) {}
    [[nodiscard]] MatvecPart part(float* y) const {
      return {type, rows.data(), packed.rows(), y, packed.rows(), {}, &packed};
    }
  };
  struct Layer {
    Matrix q, k, v, o, gate, up, down;
  };
  std::vector<Layer> layers;
  Matrix head{WeightType::q8_0, kVocabulary, kModel};
  double bytes = 0;

  Weights() {
    const auto q4 = [&](std::int64_t N, std::int64_t K) { return Matrix(WeightType::q4_1, N, K); };
    for (std::int64_t i = 0; i < kLayers; ++i) {
      layers.push_back({q4(kModel, kModel), q4(kKvHeads * kWidth, kModel),
                        q4(kKvHeads * kWidth, kModel), q4(kModel, kModel), q4(kInner, kModel),
                        q4(kInner, kModel), q4(kModel, kInner)});
    }
    for (const Matrix* matrix : all()) bytes += static_cast<double>(matrix->rows.size());
  }

  [[nodiscard]] std::vector<const Matrix*> all() const {
    std::vector<const Matrix*> out{&head};
    for (const auto& l : layers)
      out.insert(out.end(), {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down});
    return out;
  }

  void run(const std::vector<float>& x, std::int64_t M, std::vector<float>& y,
           Activations activations, const Updates* updates = nullptr) const {
    const LowRankPart* update = updates != nullptr ? updates->parts.data() : nullptr;
    const auto part = [&](const Matrix& w, float* to) {
      MatvecPart out = w.part(to);
      if (update != nullptr) out.low_rank = {update++, 1};
      return out;
    };
    for (const Layer& l : layers) {
      const MatvecPart qkv[] = {part(l.q, y.data()), part(l.k, y.data() + M * kModel),
                                part(l.v, y.data() + M * (kModel + kKvHeads * kWidth))};
      matvec(qkv, x.data(), M, kModel, activations);
      const MatvecPart o = part(l.o, y.data());
      matvec({&o, 1}, x.data(), M, kModel, activations);
      const MatvecPart gate_up[] = {part(l.gate, y.data()), part(l.up, y.data() + M * kInner)};
      matvec(gate_up, x.data(), M, kModel, activations);
      const MatvecPart down = part(l.down, y.data());
      matvec({&down, 1}, x.data(), M, kInner, activations);
    }
    const MatvecPart logits = head.part(y.data());
    matvec({&logits, 1}, x.data(), M, kModel, activations);
  }
};

const Weights& weights() {
  static const Weights w;
  return w;
}

void bench_memory() {
  const Weights& w = weights();
  std::atomic<std::uint64_t> sink{0};
  report("memory", "smollm2 weights", measure([&] {
           for (const auto* matrix : w.all()) {
             const auto& bytes = matrix->rows;
             const auto words = static_cast<std::int64_t>(bytes.size() / 8);
             at::parallel_for(0, words, 4096, [&](std::int64_t begin, std::int64_t end) {
               const auto* from = reinterpret_cast<const std::uint64_t*>(bytes.data());
               std::uint64_t sum[8] = {};
               for (; begin + 8 <= end; begin += 8) {
                 for (int i = 0; i < 8; ++i) sum[i] ^= from[begin + i];
               }
               for (std::uint64_t each : sum) sink.fetch_xor(each, std::memory_order_relaxed);
             });
           }
         }),
         w.bytes * 1e-9, "GB");
}

void bench_weights(const std::vector<std::int64_t>& batch) {
  const Weights& w = weights();
  for (std::int64_t M : batch) {
    const auto x = numbers(M * kInner);
    std::vector<float> y(static_cast<std::size_t>(M * kVocabulary));
    for (const auto& [name, activations] :
         {std::pair("8-bit", Activations::q8), std::pair("16-bit", Activations::q16),
          std::pair("f32", Activations::f32)}) {
      report("weights", "smollm2 rows=" + std::to_string(M) + ", " + name + " activations",
             measure([&] { w.run(x, M, y, activations); }), w.bytes * 1e-9, "GB");
    }
  }
  const auto x = numbers(kInner);
  std::vector<float> y(kVocabulary);
  for (WeightType type : kWeightTypes) {
    constexpr std::int64_t kN = 16384;
    const auto rows = random_rows(type, kN, kInner);
    std::optional<PackedMatrix> packed;
    MatvecPart part{type, rows.data(), kN, y.data(), kN};
    if (is_quantized(type)) part.packed = &packed.emplace(type, rows.data(), kN, kInner);
    report("matvec", std::string(name(type)) + " [16384,1536]",
           measure([&] { matvec({&part, 1}, x.data(), 1, kInner); }),
           static_cast<double>(rows.size()) * 1e-9, "GB");
  }
}

void bench_adapter() {
  const Weights& w = weights();
  const Updates updates;
  for (const std::int64_t M : {1, 4, 8}) {
    const auto x = numbers(M * kInner);
    std::vector<float> y(static_cast<std::size_t>(M * kVocabulary));
    for (const auto activations : {Activations::q8, Activations::f32}) {
      const auto plain = [&] { w.run(x, M, y, activations); };
      const auto adapted = [&] { w.run(x, M, y, activations, &updates); };
      plain();
      adapted();
      Rounds without, with;
      for (int i = 0; i < g_rounds; ++i) {
        without.add(plain);
        with.add(adapted);
      }
      const std::string spec = "M=" + std::to_string(M) +
                               " activations=" + (activations == Activations::q8 ? "q8" : "f32") +
                               " rank=";
      report("adapter", spec + "0", without.timing(), w.bytes * 1e-9, "GB");
      report("adapter", spec + std::to_string(Updates::kRank), with.timing(),
             (w.bytes + updates.bytes) * 1e-9, "GB");
    }
  }
}

// What libtorch brings for weights of few bits, packed once from the numbers of a matrix [N,K]; nothing where this build or CPU
// has none. All keep a second copy of the weights, FBGEMM's with one scale for a whole matrix.
std::vector<std::pair<const char*, std::function<at::Tensor(const at::Tensor&)>>> library_products(
    const at::Tensor& weight) {
  std::vector<std::pair<const char*, std::function<at::Tensor(const at::Tensor&)>>> out;
  const auto N = weight.size(0), K = weight.size(1);
  const auto add = [&](const char* what, const auto& make) {
    try {
      std::function<at::Tensor(const at::Tensor&)> product = make();
      static_cast<void>(product(at::ones({1, K})));
      out.emplace_back(what, std::move(product));
    } catch (const c10::Error&) {
      out.emplace_back(what, nullptr);
    }
  };
  out.emplace_back("FBGEMM, 8 bits", mneme::bench::fbgemm_product(weight));
  add("libtorch's int8pack, bf16 activations", [&] {
    const auto scales = weight.abs().amax(1).div(127).clamp_min(1e-8);
    const auto integers = (weight / scales.unsqueeze(1)).round().to(at::kChar);
    return [=, scales = scales.to(at::kBFloat16)](const at::Tensor& x) {
      return at::_weight_int8pack_mm(x.to(at::kBFloat16), integers, scales).to(at::kFloat);
    };
  });
  add("libtorch's int4pack, bf16 activations", [&] {
    constexpr std::int64_t kGroup = 32;
    const auto groups = weight.view({N, K / kGroup, kGroup});
    const auto low = groups.amin(2, true), scale = (groups.amax(2, true) - low).div(15);
    const auto integers = ((groups - low) / scale).round().clamp(0, 15).to(at::kInt).view({N, K});
    // A number is (code - 8) scale + zero.
    const auto scales_and_zeros =
        at::cat({scale, low + scale * 8}, 2).transpose(0, 1).contiguous().to(at::kBFloat16);
    const auto packed = at::_convert_weight_to_int4pack_for_cpu(integers, 1);
    return [=](const at::Tensor& x) {
      return at::_weight_int4pack_mm_for_cpu(x.to(at::kBFloat16), packed, kGroup, scales_and_zeros)
          .to(at::kFloat);
    };
  });
  return out;
}

void bench_products() {
  const c10::InferenceMode inference;
  const Weights& w = weights();
  const auto packed = [&](const Weights::Matrix& m, const at::Tensor& x, at::Tensor& y) {
    const MatvecPart part = m.part(y.mutable_data_ptr<float>());
    matvec({&part, 1}, x.const_data_ptr<float>(), x.size(0), x.size(1));
  };
  // As layers/linear.cpp does it: the weight unpacked into memory that stays, x and y changed to and from its type.
  at::Tensor memory;
  const auto unpacked = [&](at::ScalarType type, const Weights::Matrix& m, const at::Tensor& x,
                            at::Tensor& y) {
    const auto N = m.packed.rows(), K = m.packed.columns();
    if (!memory.defined() || memory.scalar_type() != type)
      memory = at::empty({kInner * kModel}, at::dtype(type));
    const auto tile = memory.narrow(0, 0, N * K).view({N, K});
    if (type == at::kFloat) {
      dequantize(m.type, m.rows.data(), N, K, tile.mutable_data_ptr<float>());
      at::mm_out(y, x, tile.t());
    } else {
      dequantize_bf16(m.type, m.rows.data(), N, K,
                      reinterpret_cast<std::uint16_t*>(tile.mutable_data_ptr<at::BFloat16>()));
      y.copy_(at::mm(x.to(type), tile.t()));
    }
  };
  // Every matrix as libraries pack it.
  std::map<const Weights::Matrix*, decltype(library_products({}))> of_libraries;
  std::vector<const char*> libraries;
  for (const auto& l : w.layers) {
    for (const auto* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) {
      auto weight = at::empty({m->packed.rows(), m->packed.columns()});
      dequantize(m->type, m->rows.data(), weight.size(0), weight.size(1),
                 weight.mutable_data_ptr<float>());
      auto& products = of_libraries[m] = library_products(weight);
      if (!libraries.empty()) continue;
      for (const auto& [what, product] : products) libraries.push_back(what);
    }
  }
  for (const std::int64_t M : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}) {
    const auto narrow = at::randn({M, kModel}), wide = at::randn({M, kInner});
    const auto all = [&](const auto& product) {
      for (const auto& l : w.layers) {
        for (const auto* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) {
          auto y = at::empty({M, m->packed.rows()});
          product(*m, m->packed.columns() == kInner ? wide : narrow, y);
        }
      }
    };
    std::vector<std::pair<const char*, std::function<void()>>> ways = {
        {"packed, 8-bit activations", [&] { all(packed); }},
        {"unpacked, bf16",
         [&] {
           all([&](const auto& m, const auto& x, auto& y) { unpacked(at::kBFloat16, m, x, y); });
         }},
        {"unpacked, f32", [&] {
           all([&](const auto& m, const auto& x, auto& y) { unpacked(at::kFloat, m, x, y); });
         }}};
    for (std::size_t i = 0; i < libraries.size(); ++i) {
      if (of_libraries.begin()->second[i].second == nullptr) continue;
      ways.emplace_back(libraries[i], [&, i] {
        all([&](const auto& m, const auto& x, auto& y) { y = of_libraries.at(&m)[i].second(x); });
      });
    }
    // In turns, so that whatever else the machine does meets all of them.
    std::vector<Rounds> rounds(ways.size());
    for (int round = -1; round < g_rounds; ++round) {
      for (std::size_t i = 0; i < ways.size(); ++i) {
        if (round < 0) {
          ways[i].second();
        } else {
          rounds[i].add(ways[i].second);
        }
      }
    }
    for (std::size_t i = 0; i < ways.size(); ++i)
      report("products", "rows=" + std::to_string(M) + " " + ways[i].first, rounds[i].timing(),
             static_cast<double>(M), "token");
  }
}

void bench_unpack() {
  constexpr std::int64_t kN = 1536, kK = 576;  // one feed-forward matrix, as prefill unpacks it
  std::vector<float> wide(kN * kK);
  std::vector<std::uint16_t> narrow(kN * kK);
  for (WeightType type : {WeightType::f16, WeightType::q8_0, WeightType::q4_0, WeightType::q4_1}) {
    const auto rows = random_rows(type, kN, kK);
    report("unpack", std::string(name(type)) + " to f32",
           measure([&] { dequantize(type, rows.data(), kN, kK, wide.data()); }), kN * kK * 1e-9,
           "Gnumber");
    report("unpack", std::string(name(type)) + " to bf16",
           measure([&] { dequantize_bf16(type, rows.data(), kN, kK, narrow.data()); }),
           kN * kK * 1e-9, "Gnumber");
  }
}

// How a cache keeps its numbers.
struct Form {
  const char* name;
  KvType type;
  bool encoded = false;
  NumberCodec keys{}, values{};
};
constexpr Form kForms[] = {{"f32", KvType::f32},
                           {"f16", KvType::f16},
                           {"bf16", KvType::bf16},
                           {"q8", KvType::f32, true, NumberCodec::group8, NumberCodec::group8},
                           {"q4", KvType::f32, true, NumberCodec::channel4, NumberCodec::group4}};

// The bytes of a page of keys or values.
std::vector<std::uint8_t> page_bytes(const Form& form, NumberCodec codec) {
  const auto some = numbers(kPageEntries * kWidth);
  if (form.encoded) {
    std::vector<std::uint8_t> bytes(
        static_cast<std::size_t>(encoded_bytes(codec, kPageEntries, kWidth)));
    encode(codec, some.data(), kPageEntries, kWidth, bytes.data());
    return bytes;
  }
  if (form.type == KvType::f32) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(some.data());
    return {from, from + some.size() * sizeof(float)};
  }
  const std::vector<std::uint16_t> ones(some.size(), 0x3c00);
  const auto* from = reinterpret_cast<const std::uint8_t*>(ones.data());
  return {from, from + ones.size() * sizeof(std::uint16_t)};
}

struct Cache {
  std::vector<std::uint8_t> memory;
  std::vector<std::int64_t> positions;
  std::vector<std::vector<PageView>> heads;  // of all layers

  Cache(const Form& form, std::int64_t entries, std::int64_t layers) {
    const auto keys = page_bytes(form, form.keys), values = page_bytes(form, form.values);
    const std::int64_t pages = (entries + kPageEntries - 1) / kPageEntries;
    for (std::int64_t e = 0; e < pages * kPageEntries; ++e) positions.push_back(e);
    memory.resize(static_cast<std::size_t>(layers * kKvHeads * pages) *
                  (keys.size() + values.size()));
    std::uint8_t* at = memory.data();
    for (std::int64_t h = 0; h < layers * kKvHeads; ++h) {
      heads.emplace_back();
      for (std::int64_t p = 0; p < pages; ++p) {
        PageView& page = heads.back().emplace_back();
        page.k = std::memcpy(at, keys.data(), keys.size());
        page.v = std::memcpy(at + keys.size(), values.data(), values.size());
        at += keys.size() + values.size();
        page.positions = positions.data() + p * kPageEntries;
        page.entries =
            static_cast<std::int32_t>(std::min(kPageEntries, entries - p * kPageEntries));
        page.type = form.type;
        page.k_codec = form.keys;
        page.v_codec = form.values;
        page.encoded = form.encoded ? static_cast<std::int32_t>(kPageEntries) : 0;
      }
    }
  }
};

std::string kv_name(KvType type) {
  return type == KvType::f32 ? "f32" : type == KvType::f16 ? "f16" : "bf16";
}

void bench_attend(std::int64_t T, const std::vector<std::int64_t>& depths, std::int64_t layers,
                  const std::string& what) {
  constexpr std::int64_t kGroup = kHeads / kKvHeads;
  for (std::int64_t depth : depths) {
    for (const Form& form : kForms) {
      const Cache cache(form, depth, layers);
      const auto q = numbers(kHeads * T * kWidth);
      std::vector<float> out(q.size());
      std::vector<std::int64_t> q_positions;
      for (std::int64_t t = 0; t < T; ++t) q_positions.push_back(depth - T + t);
      const auto run = [&] {
        for (std::int64_t l = 0; l < layers; ++l) {
          std::vector<AttendTask> tasks;
          for (std::int64_t h = 0; h < kKvHeads; ++h) {
            tasks.push_back({q.data() + h * kGroup * T * kWidth, kGroup, T, T * kWidth, kWidth,
                             q_positions.data(),
                             cache.heads[static_cast<std::size_t>(l * kKvHeads + h)],
                             out.data() + h * kGroup * T * kWidth, T * kWidth, kWidth, nullptr});
          }
          attend(tasks, kWidth, 0.125f, {}, Products::bf16);
        }
      };
      const double seen = static_cast<double>(T) * static_cast<double>(depth) -
                          0.5 * static_cast<double>(T) * static_cast<double>(T - 1);
      report(what,
             std::string(form.name) + " T=" + std::to_string(T) +
                 " depth=" + std::to_string(depth) + " layers=" + std::to_string(layers),
             measure(run), 4e-9 * seen * kHeads * kWidth * static_cast<double>(layers), "GFLOP");
    }
  }
}

// Each statistic in turns with the attention that it observes, in pairs of a query and an entry that it sees.
void bench_observe(std::int64_t T, std::int64_t depth, std::int64_t layers) {
  constexpr std::int64_t kGroup = kHeads / kKvHeads, kFunctionals = 4;
  const auto q = numbers(kHeads * T * kWidth);
  std::vector<float> out(q.size()), lse(static_cast<std::size_t>(layers * kHeads * T));
  std::vector<std::int64_t> q_positions;
  for (std::int64_t t = 0; t < T; ++t) q_positions.push_back(depth - T + t);
  std::vector<float> column_sums(static_cast<std::size_t>(kHeads * depth)), entropy(lse.size()),
      row_sums(static_cast<std::size_t>(kHeads * T * kFunctionals)),
      weights(T == 1 ? column_sums.size() : 0);
  const std::vector<float> columns(static_cast<std::size_t>(kFunctionals * depth), 1.f);
  for (const Form& form : kForms) {
    const Cache cache(form, depth, layers);
    const auto attended = [&](std::int64_t layer, std::int64_t h) {
      return AttendTask{q.data() + h * kGroup * T * kWidth,
                        kGroup,
                        T,
                        T * kWidth,
                        kWidth,
                        q_positions.data(),
                        cache.heads[static_cast<std::size_t>(layer * kKvHeads + h)],
                        out.data() + h * kGroup * T * kWidth,
                        T * kWidth,
                        kWidth,
                        lse.data() + (layer * kHeads + h * kGroup) * T};
    };
    const auto attend_all = [&] {
      for (std::int64_t layer = 0; layer < layers; ++layer) {
        std::vector<AttendTask> tasks;
        for (std::int64_t h = 0; h < kKvHeads; ++h) tasks.push_back(attended(layer, h));
        attend(tasks, kWidth, 0.125f, {});
      }
    };
    const auto observe_all = [&](const std::string& what) {
      for (std::int64_t layer = 0; layer < layers; ++layer) {
        std::vector<ObserveTask> tasks;
        for (std::int64_t h = 0; h < kKvHeads; ++h) {
          const AttendTask of = attended(layer, h);
          ObserveTask task{of.q,           of.heads, of.T,  of.q_head_stride, of.q_time_stride,
                           of.q_positions, of.pages, of.lse};
          const std::int64_t head = h * kGroup;
          if (what == "column_sums") task.column_sums = column_sums.data() + head * depth;
          if (what == "entropy") task.entropy = entropy.data() + head * T;
          if (what == "weights") task.weights = weights.data() + head * T * depth;
          if (what == "row_sums") {
            task.row_sums = row_sums.data() + head * T * kFunctionals;
            task.columns = columns.data();
            task.functionals = kFunctionals;
          }
          tasks.push_back(task);
        }
        observe(tasks, kWidth, 0.125f, {});
      }
    };
    std::vector<std::string> statistics{"column_sums", "row_sums", "entropy"};
    if (T == 1) statistics.emplace_back("weights");
    std::vector<Rounds> rounds(statistics.size() + 1);
    attend_all();
    for (int round = -1; round < g_rounds; ++round) {
      for (std::size_t i = 0; i < rounds.size(); ++i) {
        const auto work = [&] { i == 0 ? attend_all() : observe_all(statistics[i - 1]); };
        if (round < 0) {
          work();
        } else {
          rounds[i].add(work);
        }
      }
    }
    const double seen = static_cast<double>(T) * static_cast<double>(depth) -
                        0.5 * static_cast<double>(T) * static_cast<double>(T - 1);
    for (std::size_t i = 0; i < rounds.size(); ++i) {
      report("observe",
             std::string(form.name) + " T=" + std::to_string(T) +
                 " depth=" + std::to_string(depth) + " layers=" + std::to_string(layers) + " " +
                 (i == 0 ? "attend" : statistics[i - 1]),
             rounds[i].timing(), 1e-6 * seen * kHeads * static_cast<double>(layers), "Mpair");
    }
  }
}

void bench_codec() {
  constexpr std::int64_t kT = 2000, kMatrices = kLayers * kKvHeads * 2;
  const auto x = numbers(kT * kWidth);
  constexpr double kNumbers = 1e-9 * kT * kMatrices * kWidth;
  for (NumberCodec codec : {NumberCodec::group8, NumberCodec::group4, NumberCodec::channel4}) {
    const char* codec_name = codec == NumberCodec::group8   ? "group8"
                             : codec == NumberCodec::group4 ? "group4"
                                                            : "channel4";
    const std::int64_t size = encoded_bytes(codec, kT, kWidth);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size * kMatrices));
    report("encode", std::string(codec_name) + " 180 x [2000,64]", measure([&] {
             for (std::int64_t i = 0; i < kMatrices; ++i)
               encode(codec, x.data(), kT, kWidth, bytes.data() + i * size);
           }),
           kNumbers, "Gnumber");
    for (KvType type : {KvType::f32, KvType::f16, KvType::bf16}) {
      const std::int64_t number = type == KvType::f32 ? 4 : 2;
      std::vector<std::uint8_t> out(static_cast<std::size_t>(kT * kWidth * kMatrices * number));
      std::vector<DecodeTask> tasks;
      for (std::int64_t i = 0; i < kMatrices; ++i) {
        tasks.push_back({bytes.data() + i * size, kT, kWidth, 0, kT,
                         out.data() + i * kT * kWidth * number, kWidth, type});
      }
      report("decode", std::string(codec_name) + " to " + kv_name(type) + " 180 x [2000,64]",
             measure([&] { decode(codec, tasks); }), kNumbers, "Gnumber");
    }
  }
}

void bench_rope() {
  constexpr std::int64_t kT = 2000;
  std::vector<double> frequencies;
  for (int i = 0; i < kWidth / 2; ++i) frequencies.push_back(std::pow(1e5, -2.0 * i / kWidth));
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < kT; ++t) positions.push_back(t);
  auto x = numbers(kLayers * kKvHeads * kT * kWidth);
  for (PairLayout layout : {PairLayout::halves, PairLayout::adjacent}) {
    const Rope rope(frequencies, layout);
    report("rope",
           std::string(layout == PairLayout::halves ? "halves" : "adjacent") + " [90,2000,64]",
           measure([&] {
             rope.rotate(x.data(), kLayers * kKvHeads, kT, kT * kWidth, kWidth, positions.data());
           }),
           1e-9 * static_cast<double>(x.size()), "Gnumber");
  }
}

void bench_exp() {
  auto x = numbers(1 << 20);
  std::vector<float> y(x.size());
  report("exp", "1048576",
         measure([&] { kernels::exp(x.data(), y.data(), static_cast<std::int64_t>(x.size())); }),
         1e-9 * static_cast<double>(x.size()), "Gnumber");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> only{"memory",         "weights", "unpack", "attend_step",
                                "attend_prefill", "codec",   "rope",   "exp"};
  std::vector<std::string> levels{std::string(name(level()))},
      threads{std::to_string(at::get_num_threads())};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--only") only = mneme::bench::listed(argv[i + 1]);
    if (flag == "--level") levels = mneme::bench::listed(argv[i + 1]);
    if (flag == "--threads") threads = mneme::bench::listed(argv[i + 1]);
    if (flag == "--rounds") g_rounds = std::max(1, std::atoi(argv[i + 1]));
    if (flag == "--noisy") g_noisy = std::strcmp(argv[i + 1], "0") != 0;
  }
  if (!g_noisy) {
    if (const double others = mneme::bench::processors_of_others(); others > 0.5) {
      std::fprintf(stderr,
                   "bench_kernels: the machine is busy (something else runs on %.1f processors): "
                   "wait, or give --noisy 1\n",
                   others);
      return 1;
    }
  }
  for (const std::string& each : levels) {
    bool known = false;
    for (Level candidate : supported_levels()) {
      if (name(candidate) == each) set_level(candidate), known = true;
    }
    if (!known) {
      std::fprintf(stderr, "bench_kernels: the level %s does not run here\n", each.c_str());
      return 2;
    }
    for (const std::string& count : threads) {
      at::set_num_threads(std::max(1, std::atoi(count.c_str())));
      for (const std::string& what : only) {
        if (what == "memory") bench_memory();
        if (what == "weights") bench_weights({1});
        if (what == "batch") bench_weights({1, 2, 4, 8, 16});
        if (what == "adapter") bench_adapter();
        if (what == "products") bench_products();
        if (what == "unpack") bench_unpack();
        if (what == "attend_step") bench_attend(1, {128, 2048, 6144}, kLayers, "attend_step");
        if (what == "attend_prefill") bench_attend(512, {512, 2048}, 1, "attend_prefill");
        if (what == "observe_step") bench_observe(1, 2048, kLayers);
        if (what == "observe_prefill") bench_observe(512, 2048, 1);
        if (what == "codec") bench_codec();
        if (what == "rope") bench_rope();
        if (what == "exp") bench_exp();
      }
    }
  }
}
