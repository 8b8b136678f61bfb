// Dense search: the spans whose embeddings are nearest to a question's, over FAISS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// A span that was found, and how near it is.
struct Neighbour {
  std::int64_t id = 0;
  float cosine = 0;
};

/// How a DenseIndex is built.
struct DenseOptions {
  /// "Flat" or "HNSW<M>" (M links a vector, 2 to 256), in FAISS's notation; empty: by size.
  std::string factory{};
  /// With an empty factory: "Flat" below this many vectors, "HNSW32" from it on.
  std::int64_t graph_from = 100'000;
  /// Candidates that a search of the graph keeps open (FAISS: efSearch).
  std::int64_t search_breadth = 128;
};

/// Embeddings by span id, searched by cosine.
///
/// Below `graph_from` every search is an exact scan (384 numbers a vector: 20,000 vectors take 4 ms
/// on one core, 100,000 take 34). From it on build_graph() makes an HNSW graph (Malkov & Yashunin
/// 2016, arXiv:1603.09320) over the same uncompressed vectors, and a search takes a few
/// milliseconds whatever the size. HNSW rather than IVF-PQ because the cosines stay exact (the
/// order of the first twenty and the refusal threshold depend on differences of 0.01, which product
/// quantization loses), nothing is trained, and new spans are linked in as they come. Its prices:
/// vectors stay in memory whole, and building takes one to two minutes for 100,000 vectors on two
/// cores. So it is never built on the way to an answer: an index without a graph scans, removing
/// drops the graph, and whoever writes the memory builds it.
///
/// A graph can be kept: graph() writes links only, in a format of our own, and restore() puts them
/// over embeddings that the caller holds (0.3 s for 100,000). FAISS's own reader is not used: it
/// trusts lengths, offsets and links of the file, and a memory file may be hostile. restore()
/// checks every one, so that a forged graph can at worst make the search miss spans. No number of a
/// forgotten text is in a graph.
///
/// A search restricted to some ids is always an exact scan of those. Const members may be called
/// from several threads at once. Vectors are unit vectors: within 1 % of length 1.
class DenseIndex {
 public:
  /// An empty index of vectors of `dimension` numbers. Throws `invalid` for a dimension outside 1
  /// to 65,536, an unknown factory or a search_breadth below 1.
  explicit DenseIndex(std::int64_t dimension, DenseOptions options = {});
  ~DenseIndex();
  DenseIndex(DenseIndex&&) noexcept;
  DenseIndex& operator=(DenseIndex&&) noexcept;

  /// Adds vectors [ids.size(), dimension], row-major. Throws `invalid`, with nothing added, if an
  /// id is negative or there already, or a vector is not finite or not of unit length.
  void add(std::span<const std::int64_t> ids, std::span<const float> vectors);
  /// Removes ids and, if any was there, the graph; unknown ids are ignored. The number removed.
  std::int64_t remove(std::span<const std::int64_t> ids);
  /// Builds the graph if the options want one at this size and there is none; true if it did.
  bool build_graph();

  /// The k nearest, nearest first, equal cosines by id. With `within` only those ids (unknown ones
  /// are ignored) are looked at. Throws `invalid` for a query of another length, not finite or not
  /// of unit length.
  [[nodiscard]] std::vector<Neighbour> search(
      std::span<const float> query, std::int64_t k,
      const std::vector<std::int64_t>* within = nullptr) const;
  /// The cosine of each id with the query. Throws `not_found` for an unknown id, and as search.
  [[nodiscard]] std::vector<float> cosines(std::span<const float> query,
                                           std::span<const std::int64_t> ids) const;

  [[nodiscard]] bool contains(std::int64_t id) const noexcept;
  [[nodiscard]] std::int64_t size() const noexcept;
  [[nodiscard]] std::int64_t dimension() const noexcept;
  /// What searches now: "Flat" or "HNSW<M>".
  [[nodiscard]] std::string kind() const;

  /// The links of the graph and the ids it is over, to be kept; empty if there is none.
  [[nodiscard]] std::string graph() const;
  /// The index over these vectors, in any order, with the kept graph if one is given and one is
  /// wanted at this size; without, it scans. Throws as add; `corrupt` if the graph is not one that
  /// graph() writes, `mismatch` if it is over other ids or of another kind than the options want:
  /// restore without it and build it anew.
  static DenseIndex restore(std::int64_t dimension, DenseOptions options,
                            std::span<const std::int64_t> ids, std::span<const float> vectors,
                            std::string_view graph);

 private:
  struct Body;
  std::unique_ptr<Body> body_;
};

}  // namespace mneme
