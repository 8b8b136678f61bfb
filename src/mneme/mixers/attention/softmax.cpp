// softmax: multi-head attention with grouped queries and rotary positions.
//
//   q, k, v = W_q x, W_k x, W_v x          q: [B,Hq,T,K]   k: [B,H,T,K]   v: [B,H,T,V = K]
//   a_ij    = softmax_j(R(p_i) q_i . R(p_j) k_j / sqrt(K))  over visible j;  head h looks at KV head h / (Hq/H)
//   y       = W_o concat_h(sum_j a_ij v_j)
//
// spec      softmax(heads=9, kv_heads=3, head=64, rope_theta=10000, rope_pairs=halves, window=0, bias=false)
// state     a KvStore: 2 H K numbers a token, or what the KV plan keeps of them; nothing when the call is bidirectional
// cost      O(T N Hq K) for N visible entries
// taps      attn.q, attn.k, attn.v, attn.heads (what each query head read, [B,Hq,T,V]), attn.out
// needs     positions; kv_heads divides heads
// source    Vaswani et al. 2017, arXiv:1706.03762; Shazeer 2019, arXiv:1911.02150; Ainslie et al. 2023, arXiv:2305.13245
// departs   rope_theta=0 leaves rotary positions out (encoders with learned positions)
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/kernels/attend_segments.h"
#include "mneme/layers/linear.h"
#include "mneme/layers/reshape.h"
#include "mneme/mixers/attention/partial.h"
#include "mneme/mixers/attention/products.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/mixers/mixer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <fmt/format.h>
#include <optional>
#include <unordered_set>
#include <utility>

namespace mneme::mixers::softmax {

class Softmax final : public Mixer {
 public:
  struct Options {
    std::int64_t heads = 8, kv_heads = 0, head = 0, window = 0;
    double rope_theta = 10000;
    std::string rope_pairs = "halves";
    bool bias = false;
  };
  static void describe(Describe& d, Options& o) {
    d("heads", o.heads, at_least(1), "query heads");
    d("kv_heads", o.kv_heads, at_least(0), "key and value heads; 0: as many as query heads");
    d("head", o.head, at_least(0), "width of a head; 0: model width / heads");
    d("rope_theta", o.rope_theta, at_least(0),
      "base of the rotary frequencies; 0: no rotary positions");
    d("rope_pairs", o.rope_pairs, one_of({"halves", "adjacent"}), "which channels turn together");
    d("window", o.window, at_least(0), "how far back a token sees; 0: all the way");
    d("bias", o.bias, "biases in the four projections");
  }

  Softmax(const Options& o, const Shape& shape, Params& params)
      : o_(resolve(o, shape)),
        q_(params, "q", shape.model, o_.heads * o_.head, o_.bias),
        k_(params, "k", shape.model, o_.kv_heads * o_.head, o_.bias),
        v_(params, "v", shape.model, o_.kv_heads * o_.head, o_.bias),
        out_(params, "out", o_.heads * o_.head, shape.model, o_.bias),
        kv_{o_.kv_heads, o_.head, o_.head, nullptr} {
    if (o_.rope_theta > 0)
      kv_.rope = std::make_shared<Rope>(
          o_.head, o_.rope_theta,
          o_.rope_pairs == "halves" ? RopePairs::halves : RopePairs::adjacent);
  }

  at::Tensor forward(const at::Tensor& x, State& state, Call& call) const override {
    const auto B = x.size(0), T = x.size(1);
    // The heads of a single token lie in the same order either way.
    const auto split = [&](at::Tensor& y, std::int64_t heads) {
      return T == 1 ? reshaped(std::move(y), {B, heads, T, o_.head})
                    : y.view({B, T, heads, o_.head}).transpose(1, 2);
    };
    const bool narrower =
        o_.window > 0 && (call.pattern.window == 0 || call.pattern.window > o_.window);
    const bool integers = call.compute == Compute::int8;
    // Copied only where it differs: a decoding step comes by here once a layer.
    std::optional<Call> changed;
    if (integers || narrower) {
      changed = call;
      if (integers) changed->compute = Compute::int16;
      if (narrower) changed->pattern.window = o_.window;
    }
    const Call& own = changed ? *changed : call;
    // Rounding to 8 bits shows in values, whose sums are the result; scores take it.
    auto qkv = integers ? Linear::together({&q_, &k_}, x, call)
                        : Linear::together({&q_, &k_, &v_}, x, own);
    if (integers) qkv.push_back(v_(x, own));
    const auto q = tap(call, "attn.q", split(qkv[0], o_.heads));
    const auto k = tap(call, "attn.k", split(qkv[1], o_.kv_heads));
    const auto v = tap(call, "attn.v", split(qkv[2], o_.kv_heads));
    const double scale = 1.0 / std::sqrt(static_cast<double>(o_.head));
    at::Tensor attended;
    if (call.pattern.causal && call.mode != Mode::read_only) {
      auto& store = dynamic_cast<KvStore&>(state.store("kv"));
      store.append(k, v, own);
      const bool observes = store.observes();
      auto partial = with_extra(store.attend(q, own, scale, observes || own.extra_keys.defined()),
                                q, own, scale);
      attended = std::move(partial.out);
      if (observes) store.observe(q, partial.lse, own, scale);
      if (call.cost) count(store, own, T);
      store.settle();
    } else {
      attended = within(q, k, v, state, own, scale);
    }
    attended = tap(call, "attn.heads", std::move(attended));
    if (T > 1) attended = attended.transpose(1, 2);
    return tap(call, "attn.out",
               out_(reshaped(std::move(attended), {B, T, o_.heads * o_.head}), call));
  }

  [[nodiscard]] State start(std::int64_t B, const at::TensorOptions&) const override {
    State state;
    state.set("kv", registry().make<KvStore>("paged", kv_, B));
    return state;
  }

  [[nodiscard]] std::int64_t state_bytes(std::int64_t T) const override {
    return 2 * o_.kv_heads * o_.head * T * 4;
  }

 private:
  static Options resolve(Options o, const Shape& shape) {
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    if (o.head == 0) {
      if (shape.model % o.heads != 0) {
        throw Error(Errc::usage,
                    fmt::format("softmax: heads={} does not divide the model's width {}: give head",
                                o.heads, shape.model));
      }
      o.head = shape.model / o.heads;
    }
    if (o.heads % o.kv_heads != 0) {
      throw Error(Errc::usage, fmt::format("softmax: kv_heads={} does not divide heads={}",
                                           o.kv_heads, o.heads));
    }
    return o;
  }

  /// Two products of a query and each entry that the store holds up to it; keys and values are read once.
  void count(const KvStore& store, const Call& call, std::int64_t T) const {
    for (std::int64_t b = 0; b < store.rows(); ++b) {
      const auto n = static_cast<double>(call.length(b, T));
      const auto seen = n * (store.kept(b) - n) + n * (n + 1) / 2;
      call.cost->flops += 4.0 * static_cast<double>(o_.heads * o_.head) * seen;
    }
    call.cost->bytes += static_cast<double>(store.allocated_bytes());
  }

  /// Attention among the tokens of this call, and over what the State holds if it is read only; the State stays.
  at::Tensor within(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const State& state, const Call& call, double scale) const {
    const auto T = q.size(2);
    const auto turn = [&](const at::Tensor& x) {
      return kv_.rope ? (*kv_.rope)(x, call.positions) : x;
    };
    at::Tensor valid;
    if (!call.lengths.empty())
      valid = (at::arange(T).unsqueeze(0) < at::tensor(call.lengths, at::kLong).unsqueeze(1))
                  .unsqueeze(1);  // [B,1,T]
    const auto gradient = [](const at::Tensor& t) {
      return c10::GradMode::is_enabled() && t.requires_grad();
    };
    const bool fused = !call.pattern.causal && call.pattern.window == 0 &&
                       call.mode != Mode::read_only && !call.extra_keys.defined() &&
                       q.scalar_type() == at::kFloat && q.is_cpu() && !gradient(q) &&
                       !gradient(k) && !gradient(v);
    if (fused) {
      if (const auto runs = segment_runs(call, q.size(0), T))
        return within_runs(*runs, turn(q), turn(k), v, call, scale);
    }
    Entries own{turn(k), v,  call.positions.unsqueeze(1),
                valid,   {}, call.segments.defined() ? call.segments.unsqueeze(1) : at::Tensor()};
    auto partial = attend_plain(turn(q), call.positions, call.segments, own, call.pattern, scale,
                                call.segment_sees);
    if (call.mode == Mode::read_only && state.has("kv")) {
      partial = merge(
          {partial, dynamic_cast<const KvStore&>(state.store("kv")).attend(q, call, scale, true)});
    }
    return with_extra(partial, q, call, scale).out;
  }

  /// Neighbouring tokens of a row that see each other and no others.
  struct Run {
    std::int64_t row, begin, T;
  };

  /// The tokens of a bidirectional call as such runs; nothing where segments lie otherwise.
  static std::optional<std::vector<Run>> segment_runs(const Call& call, std::int64_t B,
                                                      std::int64_t T) {
    std::vector<Run> runs;
    if (!call.pattern.by_segment) {
      for (std::int64_t b = 0; b < B; ++b) runs.push_back({b, 0, call.length(b, T)});
      return runs;
    }
    if (!call.segments.defined() || call.segment_sees.defined()) return std::nullopt;
    const auto segments = call.segments.to(at::kLong).contiguous();
    for (std::int64_t b = 0; b < B; ++b) {
      const auto* id = segments.const_data_ptr<std::int64_t>() + b * T;
      const auto n = call.length(b, T);
      std::unordered_set<std::int64_t> seen;
      for (std::int64_t t = 0; t < n; ++t) {
        if (t > 0 && id[t] == id[t - 1]) {
          ++runs.back().T;
        } else if (seen.insert(id[t]).second) {
          runs.push_back({b, t, 1});
        } else {
          return std::nullopt;
        }
      }
    }
    return runs;
  }

  /// Attention within runs; zeros for tokens of none.
  at::Tensor within_runs(const std::vector<Run>& runs, at::Tensor q, at::Tensor k, at::Tensor v,
                         const Call& call, double scale) const {
    for (auto* x : {&q, &k, &v}) {
      if (x->stride(3) != 1) *x = x->contiguous();
    }
    const auto B = q.size(0), T = q.size(2), width = o_.heads * o_.head;
    auto out = call.lengths.empty() ? at::empty({B, T, o_.heads, o_.head}, q.options())
                                    : at::zeros({B, T, o_.heads, o_.head}, q.options());
    std::vector<kernels::SegmentTask> tasks;
    tasks.reserve(runs.size());
    for (const auto& run : runs) {
      const auto start = [&](const at::Tensor& x) {
        return x.const_data_ptr<float>() + run.row * x.stride(0) + run.begin * x.stride(2);
      };
      tasks.push_back({start(q), start(k), start(v),
                       out.mutable_data_ptr<float>() + (run.row * T + run.begin) * width, run.T});
    }
    kernels::attend_segments(tasks,
                             {o_.heads, o_.kv_heads, o_.head, q.stride(1), q.stride(2), k.stride(1),
                              k.stride(2), v.stride(1), v.stride(2), o_.head, width},
                             static_cast<float>(scale), attention_products(call.compute));
    return out.transpose(1, 2);
  }

  /// Joins attention over the call's extra keys, which stand at no position and are visible to all.
  static Partial with_extra(const Partial& partial, const at::Tensor& q, const Call& call,
                            double scale) {
    if (!call.extra_keys.defined()) return partial;
    const auto B = call.extra_keys.size(0), N = call.extra_keys.size(2);
    Entries extra{call.extra_keys, call.extra_values, at::zeros({B, 1, N}, at::kLong), {}, {}, {}};
    return merge(
        {partial, attend_plain(q, call.positions, {}, extra, Pattern{false, 0, false}, scale)});
  }

  Options o_;
  Linear q_, k_, v_, out_;
  KvShape kv_;
};

void enrol(Registry& r) {
  r.add<Mixer, Softmax>("softmax",
                        "multi-head softmax attention, grouped queries, rotary positions");
}

}  // namespace mneme::mixers::softmax
