#include "mneme/search/dense_index.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <fmt/format.h>
#include <limits>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace mneme {
namespace {

constexpr std::int64_t kMaxDimension = 65'536;
constexpr std::int64_t kMaxVectors =
    std::numeric_limits<std::int32_t>::max();  // HNSW's links are 32 bits
constexpr int kDefaultLinks = 32;
constexpr int kBuildBreadth = 40;
constexpr std::uint32_t kGraphMagic = 0x47484E4DU;  // "MNHG"
constexpr std::uint32_t kGraphVersion = 1;

// Links a vector of "HNSW<M>", 0 for "Flat", -1 for an empty string.
int links_of(const std::string& factory) {
  if (factory.empty()) return -1;
  if (factory == "Flat") return 0;
  int links = 0;
  if (factory.starts_with("HNSW")) {
    const char* end = factory.data() + factory.size();
    const auto [stop, error] = std::from_chars(factory.data() + 4, end, links);
    if (error == std::errc() && stop == end && links >= 2 && links <= 256) return links;
  }
  throw Error(
      Errc::invalid,
      fmt::format("dense index '{}': wanted 'Flat' or 'HNSW<M>' with M from 2 to 256", factory));
}

float dot(const float* a, const float* b, std::size_t n) {
  // Eight sums that do not wait for each other.
  float sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float total = 0;
  for (; i < n; ++i) total += a[i] * b[i];
  return total + ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
         ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

bool unit_length(const float* v, std::size_t n) {
  const double squared = dot(v, v, n);
  return std::isfinite(squared) && std::abs(std::sqrt(squared) - 1.0) <= 0.01;
}

void nearest_first(std::vector<Neighbour>& found, std::int64_t k) {
  const auto kept =
      static_cast<std::ptrdiff_t>(std::min<std::size_t>(found.size(), static_cast<std::size_t>(k)));
  std::partial_sort(found.begin(), found.begin() + kept, found.end(),
                    [](const Neighbour& a, const Neighbour& b) {
                      return a.cosine != b.cosine ? a.cosine > b.cosine : a.id < b.id;
                    });
  found.resize(static_cast<std::size_t>(kept));
}

template <class T>
void append(std::string& out, const T* values, std::size_t n) {
  out.append(reinterpret_cast<const char*>(values), n * sizeof(T));
}

[[noreturn]] void corrupt(std::string_view what) {
  throw Error(
      Errc::corrupt,
      fmt::format("stored search graph: {}; it can be built anew from the embeddings", what));
}

// Reads fixed-size values from bytes, never beyond them.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : bytes_(bytes) {}
  [[nodiscard]] std::size_t left() const noexcept { return bytes_.size(); }
  template <class T>
  T next() {
    T value;
    read(&value, 1);
    return value;
  }
  template <class T>
  void read(T* out, std::size_t n) {
    if (n > bytes_.size() / sizeof(T)) corrupt("it ends too early");
    if (n > 0) std::memcpy(out, bytes_.data(), n * sizeof(T));
    bytes_.remove_prefix(n * sizeof(T));
  }

 private:
  std::string_view bytes_;
};

}  // namespace

struct DenseIndex::Body {
  std::int64_t dimension;
  DenseOptions options;
  int links;                      // of the options: -1 by size
  std::vector<std::int64_t> ids;  // of each row
  std::unordered_map<std::int64_t, std::int64_t> row;
  std::unique_ptr<faiss::IndexFlatIP> flat;  // exactly one of the two
  std::unique_ptr<faiss::IndexHNSWFlat> hnsw;

  [[nodiscard]] std::size_t d() const noexcept { return static_cast<std::size_t>(dimension); }
  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(ids.size()); }
  [[nodiscard]] const float* vectors() const {
    return flat ? flat->get_xb() : static_cast<const faiss::IndexFlat*>(hnsw->storage)->get_xb();
  }
  [[nodiscard]] const float* vector(std::int64_t at) const {
    return vectors() + static_cast<std::size_t>(at) * d();
  }
  /// Links a vector wanted at this size; 0 for none.
  [[nodiscard]] int wanted(std::int64_t n) const noexcept {
    if (links >= 0) return links;
    return n >= options.graph_from ? kDefaultLinks : 0;
  }
  [[nodiscard]] std::unique_ptr<faiss::IndexHNSWFlat> empty_graph(int m) const {
    auto made = std::make_unique<faiss::IndexHNSWFlat>(static_cast<int>(dimension), m,
                                                       faiss::METRIC_INNER_PRODUCT);
    made->hnsw.efConstruction = kBuildBreadth;
    made->hnsw.efSearch = static_cast<int>(options.search_breadth);
    return made;
  }
  /// Holds `n` rows of `x` to be scanned.
  void hold(std::int64_t n, const float* x) {
    auto made = std::make_unique<faiss::IndexFlatIP>(dimension);
    if (n > 0) made->add(n, x);
    flat = std::move(made);
    hnsw.reset();
  }
  void check_query(std::span<const float> query) const {
    if (static_cast<std::int64_t>(query.size()) != dimension) {
      throw Error(Errc::invalid,
                  fmt::format("a query of {} numbers for an index of {}", query.size(), dimension));
    }
    if (!unit_length(query.data(), query.size()))
      throw Error(Errc::invalid, "the query vector is not finite and of unit length");
  }
  /// Checks vectors before anything is changed and gives their ids rows.
  void take_ids(std::span<const std::int64_t> added, std::span<const float> x) {
    if (x.size() / d() != added.size() || x.size() % d() != 0) {
      throw Error(Errc::invalid, fmt::format("{} numbers for {} vectors of {}", x.size(),
                                             added.size(), dimension));
    }
    if (static_cast<std::int64_t>(added.size()) > kMaxVectors - size()) {
      throw Error(Errc::full, fmt::format("a dense index holds at most {} vectors", kMaxVectors));
    }
    std::unordered_set<std::int64_t> fresh;
    for (std::size_t i = 0; i < added.size(); ++i) {
      if (added[i] < 0)
        throw Error(Errc::invalid, fmt::format("span id {}: ids are not negative", added[i]));
      if (row.contains(added[i]) || !fresh.insert(added[i]).second) {
        throw Error(Errc::invalid,
                    fmt::format("span {} has a vector already; remove it first", added[i]));
      }
      if (!unit_length(x.data() + i * d(), d())) {
        throw Error(
            Errc::invalid,
            fmt::format("the vector of span {} is not finite and of unit length", added[i]));
      }
    }
    for (const auto id : added) {
      row.emplace(id, size());
      ids.push_back(id);
    }
  }
  void take_graph(std::string_view bytes, std::span<const std::int64_t> given,
                  std::span<const float> x, int m);
};

DenseIndex::DenseIndex(std::int64_t dimension, DenseOptions options)
    : body_(std::make_unique<Body>()) {
  if (dimension < 1 || dimension > kMaxDimension) {
    throw Error(Errc::invalid,
                fmt::format("vectors of {} numbers: wanted 1 to {}", dimension, kMaxDimension));
  }
  if (options.search_breadth < 1 || options.search_breadth > 1'000'000) {
    throw Error(Errc::invalid,
                fmt::format("search_breadth {}: wanted 1 to 1000000", options.search_breadth));
  }
  body_->dimension = dimension;
  body_->links = links_of(options.factory);
  body_->options = std::move(options);
  body_->hold(0, nullptr);
}

DenseIndex::~DenseIndex() = default;
DenseIndex::DenseIndex(DenseIndex&&) noexcept = default;
DenseIndex& DenseIndex::operator=(DenseIndex&&) noexcept = default;

void DenseIndex::add(std::span<const std::int64_t> ids, std::span<const float> vectors) {
  auto& b = *body_;
  b.take_ids(ids, vectors);
  if (ids.empty()) return;
  const auto n = static_cast<std::int64_t>(ids.size());
  if (b.hnsw) {
    b.hnsw->add(n, vectors.data());
  } else {
    b.flat->add(n, vectors.data());
  }
}

bool DenseIndex::build_graph() {
  auto& b = *body_;
  const int links = b.wanted(b.size());
  if (b.hnsw || links == 0 || b.size() == 0) return false;
  auto made = b.empty_graph(links);
  made->add(b.size(), b.vectors());
  b.hnsw = std::move(made);
  b.flat.reset();
  return true;
}

std::int64_t DenseIndex::remove(std::span<const std::int64_t> ids) {
  auto& b = *body_;
  const std::unordered_set<std::int64_t> gone(ids.begin(), ids.end());
  std::vector<std::int64_t> kept_ids;
  std::vector<float> kept;
  for (std::int64_t r = 0; r < b.size(); ++r) {
    if (gone.contains(b.ids[static_cast<std::size_t>(r)])) continue;
    kept_ids.push_back(b.ids[static_cast<std::size_t>(r)]);
    kept.insert(kept.end(), b.vector(r), b.vector(r) + b.dimension);
  }
  const auto removed = b.size() - static_cast<std::int64_t>(kept_ids.size());
  if (removed == 0) return 0;
  b.ids = std::move(kept_ids);
  b.row.clear();
  for (std::int64_t r = 0; r < b.size(); ++r) b.row.emplace(b.ids[static_cast<std::size_t>(r)], r);
  b.hold(b.size(), kept.data());
  return removed;
}

std::vector<Neighbour> DenseIndex::search(std::span<const float> query, std::int64_t k,
                                          const std::vector<std::int64_t>* within) const {
  const auto& b = *body_;
  b.check_query(query);
  std::vector<Neighbour> found;
  if (k <= 0 || b.size() == 0) return found;
  if (within != nullptr) {
    std::unordered_set<std::int64_t> seen;
    for (const auto id : *within) {
      const auto at = b.row.find(id);
      if (at == b.row.end() || !seen.insert(id).second) continue;
      found.push_back({id, dot(query.data(), b.vector(at->second), b.d())});
    }
    nearest_first(found, k);
    return found;
  }
  const auto wanted = std::min(k, b.size());
  std::vector<faiss::Index::idx_t> rows(static_cast<std::size_t>(wanted));
  std::vector<float> cosines(rows.size());
  const faiss::Index& index = b.flat ? static_cast<const faiss::Index&>(*b.flat) : *b.hnsw;
  index.search(1, query.data(), wanted, cosines.data(), rows.data());
  for (const auto at : rows) {
    // A graph may reach fewer than k. The cosine is computed again, so that all searches give the
    // same number.
    if (at >= 0)
      found.push_back(
          {b.ids[static_cast<std::size_t>(at)], dot(query.data(), b.vector(at), b.d())});
  }
  nearest_first(found, k);
  return found;
}

std::vector<float> DenseIndex::cosines(std::span<const float> query,
                                       std::span<const std::int64_t> ids) const {
  const auto& b = *body_;
  b.check_query(query);
  std::vector<float> out;
  out.reserve(ids.size());
  for (const auto id : ids) {
    const auto at = b.row.find(id);
    if (at == b.row.end())
      throw Error(Errc::not_found, fmt::format("span {} has no vector in the dense index", id));
    out.push_back(dot(query.data(), b.vector(at->second), b.d()));
  }
  return out;
}

bool DenseIndex::contains(std::int64_t id) const noexcept { return body_->row.contains(id); }
std::int64_t DenseIndex::size() const noexcept { return body_->size(); }
std::int64_t DenseIndex::dimension() const noexcept { return body_->dimension; }

std::string DenseIndex::kind() const {
  return body_->hnsw ? fmt::format("HNSW{}", body_->hnsw->hnsw.nb_neighbors(1)) : "Flat";
}

// magic, version, links, top level, entry row: u32, u32, u32, i32, i32; reserved u32; n: u64; ids:
// i64[n] in the order of rows; levels: u8[n]; links: i32, for each row 2M + M (level - 1), -1 where
// there is none. Little-endian.
std::string DenseIndex::graph() const {
  const auto& b = *body_;
  if (!b.hnsw) return {};
  const auto& h = b.hnsw->hnsw;
  const std::uint32_t head[] = {kGraphMagic,
                                kGraphVersion,
                                static_cast<std::uint32_t>(h.nb_neighbors(1)),
                                static_cast<std::uint32_t>(h.max_level),
                                static_cast<std::uint32_t>(h.entry_point),
                                0};
  const auto n = static_cast<std::uint64_t>(b.size());
  const std::vector<std::uint8_t> levels(h.levels.begin(), h.levels.end());
  std::string out;
  out.reserve(sizeof head + sizeof n + b.ids.size() * 9 + h.neighbors.size() * 4);
  append(out, head, std::size(head));
  append(out, &n, 1);
  append(out, b.ids.data(), b.ids.size());
  append(out, levels.data(), levels.size());
  append(out, h.neighbors.data(), h.neighbors.size());
  return out;
}

void DenseIndex::Body::take_graph(std::string_view bytes, std::span<const std::int64_t> given,
                                  std::span<const float> x, int m) {
  ByteReader in(bytes);
  if (in.next<std::uint32_t>() != kGraphMagic) corrupt("it does not begin as one");
  if (const auto version = in.next<std::uint32_t>(); version != kGraphVersion) {
    throw Error(Errc::mismatch,
                fmt::format("stored search graph: format {}, wanted {}; build it anew", version,
                            kGraphVersion));
  }
  if (const auto has = in.next<std::uint32_t>(); has != static_cast<std::uint32_t>(m)) {
    throw Error(
        Errc::mismatch,
        fmt::format("stored search graph: {} links a vector, wanted {}; build it anew", has, m));
  }
  const auto top = in.next<std::int32_t>(), entry = in.next<std::int32_t>();
  in.next<std::uint32_t>();
  const auto n = in.next<std::uint64_t>();
  if (n != given.size()) {
    throw Error(Errc::mismatch,
                fmt::format("stored search graph: over {} spans, wanted {}; build it anew", n,
                            given.size()));
  }
  if (n > in.left() / 9) corrupt("it ends too early");
  const auto size = static_cast<std::size_t>(n);
  std::vector<std::int64_t> order(size);
  in.read(order.data(), size);
  std::vector<std::uint8_t> levels(size);
  in.read(levels.data(), size);

  auto made = empty_graph(m);
  auto& h = made->hnsw;
  const auto most = h.cum_nneighbor_per_level.size() - 1;
  std::vector<std::size_t> offsets(size + 1, 0);
  for (std::size_t i = 0; i < size; ++i) {
    if (levels[i] < 1 || levels[i] > most) corrupt("a vector is on a level that there is not");
    offsets[i + 1] = offsets[i] + static_cast<std::size_t>(h.cum_nb_neighbors(levels[i]));
  }
  if (in.left() != offsets[size] * sizeof(std::int32_t))
    corrupt("its length is not that of its links");
  std::vector<std::int32_t> neighbours(offsets[size]);
  in.read(neighbours.data(), neighbours.size());
  if (size == 0) {
    if (entry != -1 || top != -1) corrupt("its entry is none of its vectors");
  } else {
    if (entry < 0 || static_cast<std::uint64_t>(entry) >= n)
      corrupt("its entry is none of its vectors");
    if (top < 0 || std::int64_t{top} + 1 != levels[static_cast<std::size_t>(entry)] ||
        levels[static_cast<std::size_t>(entry)] !=
            *std::max_element(levels.begin(), levels.end())) {
      corrupt("its entry is not on the top level");
    }
  }
  // A link on a level leads to a vector that has that level: the search reads that one's links
  // there.
  for (std::size_t i = 0; i < size; ++i) {
    for (int level = 0; level < levels[i]; ++level) {
      const auto begin = offsets[i] + static_cast<std::size_t>(h.cum_nb_neighbors(level));
      const auto end = offsets[i] + static_cast<std::size_t>(h.cum_nb_neighbors(level + 1));
      for (auto j = begin; j < end; ++j) {
        const auto to = neighbours[j];
        if (to == -1) continue;
        if (to < 0 || static_cast<std::uint64_t>(to) >= n ||
            levels[static_cast<std::size_t>(to)] <= level) {
          corrupt("a link leads nowhere");
        }
      }
    }
  }
  // Rows in the order of the graph.
  std::unordered_map<std::int64_t, std::size_t> at;
  for (std::size_t i = 0; i < given.size(); ++i) at.emplace(given[i], i);
  std::vector<float> rows(x.size());
  std::unordered_map<std::int64_t, std::int64_t> placed;
  for (std::size_t i = 0; i < size; ++i) {
    const auto from = at.find(order[i]);
    if (from == at.end() || !placed.emplace(order[i], static_cast<std::int64_t>(i)).second) {
      throw Error(Errc::mismatch, "stored search graph: over other spans; build it anew");
    }
    std::copy_n(x.data() + from->second * d(), d(), rows.data() + i * d());
  }
  h.levels.assign(levels.begin(), levels.end());
  h.offsets = std::move(offsets);
  h.neighbors = std::move(neighbours);
  h.entry_point = entry;
  h.max_level = top;
  if (size > 0) made->storage->add(static_cast<std::int64_t>(size), rows.data());
  made->ntotal = static_cast<std::int64_t>(size);
  ids = std::move(order);
  row = std::move(placed);
  hnsw = std::move(made);
  flat.reset();
}

DenseIndex DenseIndex::restore(std::int64_t dimension, DenseOptions options,
                               std::span<const std::int64_t> ids, std::span<const float> vectors,
                               std::string_view graph) {
  DenseIndex out(dimension, std::move(options));
  auto& b = *out.body_;
  const int m = b.wanted(static_cast<std::int64_t>(ids.size()));
  if (graph.empty() || m == 0) {
    out.add(ids, vectors);
    return out;
  }
  b.take_ids(ids, vectors);
  b.take_graph(graph, ids, vectors, m);
  return out;
}

}  // namespace mneme
