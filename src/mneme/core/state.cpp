#include "mneme/core/state.h"

#include "mneme/core/checksum.h"
#include "mneme/core/error.h"
#include "mneme/core/read_ahead.h"
#include "mneme/core/registry.h"
#include "mneme/core/sole_owner.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fmt/format.h>

namespace mneme {
namespace {

constexpr std::uint32_t kMagic = 0x53454E4D;  // "MNES"
constexpr std::uint32_t kVersion = 1;
constexpr int kMaxDepth = 8;

template <class Map>
auto& entry(Map& map, std::string_view name, const char* what) {
  const auto found = map.find(name);
  if (found == map.end())
    throw Error(Errc::not_found, fmt::format("the state holds no {} named '{}'", what, name));
  return found->second;
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

State::State(std::initializer_list<std::pair<const std::string, at::Tensor>> tensors) {
  for (const auto& [name, value] : tensors) set(name, value);
}

bool State::has(std::string_view name) const {
  return tensors_.contains(name) || stores_.contains(name) || children_.contains(name);
}

std::vector<std::string> State::names() const {
  std::vector<std::string> out;
  for (const auto& [name, x] : tensors_) out.push_back(name);
  for (const auto& [name, x] : stores_) out.push_back(name);
  for (const auto& [name, x] : children_) out.push_back(name);
  return out;
}

const at::Tensor& State::tensor(std::string_view name) const {
  return *entry(tensors_, name, "tensor");
}

at::Tensor& State::tensor(std::string_view name) {
  auto& held = entry(tensors_, name, "tensor");
  if (!sole_owner(held)) held = std::make_shared<at::Tensor>(held->clone());
  return *held;
}

void State::set(std::string_view name, at::Tensor value) {
  tensors_.insert_or_assign(std::string(name), std::make_shared<at::Tensor>(std::move(value)));
}

State& State::child(std::string_view name) {
  auto found = children_.find(name);
  if (found == children_.end())
    found = children_.emplace(std::string(name), std::make_unique<State>()).first;
  return *found->second;
}
const State& State::child(std::string_view name) const { return *entry(children_, name, "child"); }

StateStore& State::store(std::string_view name) {
  auto& held = entry(stores_, name, "store");
  read_ahead.note(&held);
  read_ahead.note(held.get());
  if (!sole_owner(held)) held = held->fork();
  return *held;
}
const StateStore& State::store(std::string_view name) const {
  return *entry(stores_, name, "store");
}
void State::set(std::string_view name, std::unique_ptr<StateStore> store) {
  stores_.insert_or_assign(std::string(name), std::move(store));
}

std::int64_t& State::counter(std::string_view name) {
  const auto found = counters_.find(name);
  return found != counters_.end() ? found->second : counters_[std::string(name)];
}

bool State::empty() const { return tensors_.empty() && stores_.empty() && children_.empty(); }

std::int64_t State::rows() const {
  if (!positions.empty()) return static_cast<std::int64_t>(positions.size());
  for (const auto& [name, x] : tensors_) return x->dim() ? x->size(0) : 0;
  for (const auto& [name, x] : stores_) return x->rows();
  for (const auto& [name, x] : children_) {
    if (const auto rows = x->rows(); rows > 0)
      return rows;  // a layer that keeps nothing has an empty child
  }
  return 0;
}

State State::fork() const {
  State out;
  out.positions = positions;
  out.generator = generator;
  out.choices = choices;
  out.header = header;
  out.tensors_ = tensors_;
  out.stores_ = stores_;
  out.counters_ = counters_;
  for (const auto& [name, x] : children_)
    out.children_.emplace(name, std::make_unique<State>(x->fork()));
  return out;
}

void State::rewind(std::int64_t n) {
  if (n == 0) return;
  if (n < 0)
    throw Error(Errc::invalid, fmt::format("rewind by {} tokens: at least 0 is wanted", n));
  // All or nothing: what can fail is done on the side first.
  std::vector<std::pair<std::shared_ptr<StateStore>*, std::shared_ptr<StateStore>>> rewound;
  std::vector<State*> visited;
  const auto prepare = [&](State& state, const auto& self) -> void {
    for (const auto& [name, x] : state.tensors_) {
      throw Error(
          Errc::unsupported,
          fmt::format(
              "the recurrent state '{}' cannot be rewound: fork before the tokens that may go",
              name));
    }
    for (auto position : state.positions) {
      if (position < n)
        throw Error(Errc::invalid,
                    fmt::format("rewind by {} tokens where a row has only {}", n, position));
    }
    for (auto& [name, x] : state.stores_) {
      auto store = x->fork();
      store->rewind(n);
      rewound.emplace_back(&x, std::move(store));
    }
    visited.push_back(&state);
    for (auto& [name, x] : state.children_) self(*x, self);
  };
  prepare(*this, prepare);
  for (auto& [held, store] : rewound) *held = std::move(store);
  for (auto* state : visited) {
    for (auto& position : state->positions) position -= n;
  }
}

State State::select(const std::vector<std::int64_t>& rows) const {
  const auto held = this->rows();
  for (const auto row : rows) {
    if (held > 0 && (row < 0 || row >= held))
      throw Error(Errc::invalid, fmt::format("row {} of a state that holds {}", row, held));
  }
  State out;
  out.generator = generator;
  out.choices = choices;
  out.header = header;
  out.counters_ = counters_;
  for (const auto row : rows) {
    if (!positions.empty()) out.positions.push_back(positions[static_cast<std::size_t>(row)]);
  }
  const auto index = at::tensor(rows, at::kLong);
  for (const auto& [name, x] : tensors_) out.set(name, x->index_select(0, index.to(x->device())));
  for (const auto& [name, x] : stores_) out.set(name, x->select(rows));
  for (const auto& [name, x] : children_)
    out.children_.emplace(name, std::make_unique<State>(x->select(rows)));
  return out;
}

State State::concat(const std::vector<const State*>& states) {
  if (states.empty()) return {};
  const State& first = *states.front();
  State out;
  out.generator = first.generator;
  out.header = first.header;
  out.counters_ = first.counters_;
  const bool started = std::any_of(states.begin(), states.end(),
                                   [](const State* s) { return !s->positions.empty(); });
  for (const auto* state : states) {
    if (state->names() != first.names())
      throw Error(Errc::mismatch, "states of different models cannot be joined");
    if (started)
      out.positions.insert(out.positions.end(), state->positions.begin(), state->positions.end());
    if (started && state->positions.empty())
      out.positions.resize(out.positions.size() + static_cast<std::size_t>(state->rows()));
    out.choices.insert(out.choices.end(), state->choices.begin(), state->choices.end());
  }
  for (const auto& [name, x] : first.tensors_) {
    std::vector<at::Tensor> parts;
    for (const auto* state : states) {
      const auto& part = state->tensor(name);
      if (part.dim() == 0 || part.scalar_type() != x->scalar_type() ||
          part.sizes().slice(1) != x->sizes().slice(1)) {
        throw Error(
            Errc::mismatch,
            fmt::format("states whose tensors '{}' differ in type or size cannot be joined", name));
      }
      parts.push_back(part);
    }
    out.set(name, at::cat(parts, 0));
  }
  for (const auto& [name, x] : first.stores_) {
    std::vector<const StateStore*> rest;
    for (std::size_t i = 1; i < states.size(); ++i) rest.push_back(&states[i]->store(name));
    out.set(name, x->concat(rest));
  }
  for (const auto& [name, x] : first.children_) {
    std::vector<const State*> parts;
    for (const auto* state : states) parts.push_back(&state->child(name));
    out.children_.emplace(name, std::make_unique<State>(concat(parts)));
  }
  return out;
}

void State::reset(const std::vector<bool>& rows) {
  const auto held = this->rows();
  if (held > 0 && static_cast<std::int64_t>(rows.size()) != held) {
    throw Error(Errc::invalid, fmt::format("reset with {} flags of a state that holds {} rows",
                                           rows.size(), held));
  }
  for (std::size_t i = 0; i < rows.size() && i < positions.size(); ++i) {
    if (rows[i]) positions[i] = 0;
  }
  for (auto& [name, held] : tensors_) {
    auto& x = tensor(name);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i]) x.select(0, static_cast<std::int64_t>(i)).zero_();
    }
  }
  for (auto& [name, x] : stores_) store(name).reset(rows);
  for (auto& [name, x] : children_) x->reset(rows);
}

void State::detach() {
  for (auto& [name, x] : tensors_) {
    if (!x->requires_grad()) continue;
    // A fork that still shares the entry keeps the memory: a detached alias would let writes through to it.
    x = std::make_shared<at::Tensor>(sole_owner(x) ? x->detach() : x->detach().clone());
  }
  for (auto& [name, x] : stores_) store(name).detach();
  for (auto& [name, x] : children_) x->detach();
}

void State::write(ByteWriter& out) const {
  for (const auto* text :
       {&header.kind, &header.spec, &header.model_digest, &header.compute, &header.level})
    out.string(*text);
  out.value(header.version);
  out.value(static_cast<std::uint64_t>(positions.size()));
  for (auto position : positions) out.value(position);
  out.value(generator.seed());
  out.value(generator.counter());
  out.value(static_cast<std::uint64_t>(choices.size()));
  for (const auto& choice : choices) {
    out.string(choice.what);
    out.value(choice.at);
    out.value(choice.value);
  }
  out.value(static_cast<std::uint64_t>(counters_.size()));
  for (const auto& [name, x] : counters_) {
    out.string(name);
    out.value(x);
  }
  out.value(static_cast<std::uint64_t>(tensors_.size()));
  for (const auto& [name, x] : tensors_) {
    out.string(name);
    out.tensor(*x);
  }
  out.value(static_cast<std::uint64_t>(stores_.size()));
  for (const auto& [name, x] : stores_) {
    out.string(name);
    out.string(x->name());
    x->save(out);
  }
  out.value(static_cast<std::uint64_t>(children_.size()));
  for (const auto& [name, x] : children_) {
    out.string(name);
    x->write(out);
  }
}

State State::read(ByteReader& in, int depth) {
  if (depth > kMaxDepth)
    throw Error(Errc::corrupt, "stored state is nested too deep: it is damaged");
  State out;
  for (auto* text : {&out.header.kind, &out.header.spec, &out.header.model_digest,
                     &out.header.compute, &out.header.level})
    *text = in.string();
  out.header.version = in.value<std::int64_t>();
  for (auto n = in.count(8); n > 0; --n) out.positions.push_back(in.value<std::int64_t>());
  const auto seed = in.value<std::uint64_t>();
  out.generator = Generator(seed, in.value<std::uint64_t>());
  for (auto n = in.count(24); n > 0; --n) {
    auto what = in.string();
    const auto at = in.value<std::int64_t>();
    out.choices.push_back({std::move(what), at, in.value<std::int64_t>()});
  }
  for (auto n = in.count(16); n > 0; --n) {
    auto name = in.string();
    out.counters_[std::move(name)] = in.value<std::int64_t>();
  }
  for (auto n = in.count(17); n > 0; --n) {
    auto name = in.string();
    out.set(name, in.tensor());
  }
  for (auto n = in.count(16); n > 0; --n) {
    auto name = in.string();
    const auto kind = in.string();
    if (!registry().has(StateStore::kKind, kind)) {
      throw Error(
          Errc::unsupported,
          fmt::format(
              "stored state needs the unknown store '{}': it was written by a newer version",
              kind));
    }
    auto store = registry().make<StateStore>(Stage{kind, {}});
    store->load(in);
    out.set(name, std::move(store));
  }
  for (auto n = in.count(40); n > 0; --n) {
    auto name = in.string();
    out.children_[std::move(name)] = std::make_unique<State>(read(in, depth + 1));
  }
  return out;
}

std::int64_t State::bytes() const {
  ByteWriter counter(nullptr);
  write(counter);
  return counter.written() + 12;
}

std::string State::save() const {
  std::string out;
  out.reserve(static_cast<std::size_t>(bytes()));
  ByteWriter writer(&out);
  writer.value(kMagic);
  writer.value(kVersion);
  write(writer);
  writer.value(crc32c(as_bytes(out)));
  return out;
}

State State::load(std::string_view bytes) {
  ByteReader in(bytes);
  if (bytes.size() < 12 || in.value<std::uint32_t>() != kMagic)
    throw Error(Errc::corrupt, "this is not a stored state");
  // Every format keeps the frame of magic, version and checksum, so a damaged version is not taken for a newer one.
  std::uint32_t checksum;
  std::memcpy(&checksum, bytes.data() + bytes.size() - 4, 4);
  if (crc32c(as_bytes(bytes.substr(0, bytes.size() - 4))) != checksum)
    throw Error(Errc::corrupt, "stored state fails its checksum: it is damaged");
  const auto version = in.value<std::uint32_t>();
  if (version != kVersion) {
    throw Error(
        Errc::mismatch,
        fmt::format("stored state has format {}, this program reads format {}", version, kVersion));
  }
  auto state = read(in, 0);
  in.value<std::uint32_t>();
  if (!in.done()) throw Error(Errc::corrupt, "stored state has bytes after its end: it is damaged");
  return state;
}

}  // namespace mneme
