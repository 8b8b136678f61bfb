// Memory: one memory file with the models that read and search it. Read once, ask forever.
#pragma once

#include "mneme/core/spec.h"
#include "mneme/embed/sentence_encoder.h"
#include "mneme/memory/citation.h"
#include "mneme/memory/memory_file.h"
#include "mneme/memory/prompt.h"
#include "mneme/memory/reader.h"
#include "mneme/models/language_model.h"
#include "mneme/search/hybrid_search.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mneme {

/// The models, loaded when first needed and shared by all memories of a process.
class MemoryModels {
 public:
  /// Empty names: what the memory file says, else the defaults "smollm2" and "minilm" and the model's own adapter.
  MemoryModels(std::string language_model, std::string embedder, std::string adapter = "",
               Compute compute = Compute::automatic);

  [[nodiscard]] const std::string& language_model_name() const { return language_model_name_; }
  [[nodiscard]] const std::string& embedder_name() const { return embedder_name_; }
  /// The adapter in effect: what was asked for; else, if a memory names `model`, what that says (nothing: kNoAdapter);
  /// else the model's default. Decided at the first call.
  const std::string& adapter(const std::optional<std::string>& model, const std::string& otherwise);
  /// With its adapter, which is decided now if it was not.
  std::shared_ptr<const LanguageModel> language_model(const std::string& otherwise);
  /// The same model without adapter: what writes freely.
  std::shared_ptr<const LanguageModel> base_language_model(const std::string& otherwise);
  std::shared_ptr<const SentenceEncoder> embedder(const std::string& otherwise);

 private:
  std::shared_ptr<const LanguageModel> load(const std::string& otherwise,
                                            const std::string& adapter);

  std::string language_model_name_, embedder_name_;
  std::optional<std::string> adapter_;
  Compute compute_;
  std::shared_ptr<const LanguageModel> language_model_, base_;
  std::shared_ptr<const SentenceEncoder> embedder_;
};

enum class ContextMode { span, stream };
enum class Placement { each, together };

struct ReadOptions {
  bool eager = false;                       ///< states now, not at first use
  ContextMode context = ContextMode::span;  ///< only decided for a new memory
  bool sync = false;                        ///< states wait for the disk too
  std::function<bool()> cancelled;          ///< asked between pieces of work; true stops cleanly
  /// Progress: what is being done ("indexing", in bytes of the texts; "reading", in tokens), how much more of it is done
  /// than at the call before, of how much in all. The first call of each comes before the work, with 0.
  std::function<void(std::string_view what, std::int64_t done, std::int64_t total)> progress;
};

struct SourceReport {
  std::string name;
  std::int64_t tokens = 0, spans = 0, bytes = 0, with_states = 0;
  std::string outcome;  ///< "added", "unchanged", "replaced", "resumed", "interrupted"
};

struct ReadReport {
  std::vector<SourceReport> sources;
  std::int64_t tokens_read = 0;
  double seconds = 0;
  std::int64_t states_computed = 0, states_stored = 0;
  std::string obstacle;  ///< why states were not stored, in one line; empty when they were
  bool interrupted = false;
  Usage usage;
};

struct AskOptions {
  Placement placement = Placement::each;
  std::int64_t top = 0;         ///< spans to place; 0: the prompt's own for each, 2 for together
  std::int64_t max_tokens = 0;  ///< 0: the prompt's own
  std::vector<std::string> sources;               ///< only spans of these labels; empty: all
  bool always = false;                            ///< answer even when nothing relevant was found
  std::function<bool(std::string_view)> on_text;  ///< streamed answer; false stops
};

/// What happened to one retrieved span, for --explain.
struct CandidateReport {
  Candidate candidate;
  std::string source, excerpt, answer;
  double answer_log_probability = 0;  ///< mean per token, end included; 0 if not read
  double refused = 0;                 ///< the model's probability that the span holds no answer
  bool placed = false, had_state = false;
  std::string file;
  std::int64_t begin = 0, end = 0;  ///< bytes of the source
};

struct Answer {
  std::string answer;
  bool found = false;
  bool quotation = false;  ///< the answer's words stand in a cited span
  bool cut = false;        ///< the answer ends where its tokens were used up
  std::vector<Citation> citations;
  std::vector<CandidateReport> candidates;  ///< in the order of retrieval
  double relevance = 0, threshold = 0;
  double confidence = 0;                    ///< of the answer that was read; see choice.h
  std::optional<double> confidence_wanted;  ///< below which it is refused, where the prompt can
  std::int64_t document_tokens_evaluated = 0, question_tokens = 0, generated_tokens = 0,
               tokens_in_memory = 0;
  std::int64_t tokens_placed = 0, tokens_dropped = 0, state_bytes = 0, states_stored = 0;
  std::string states_obstacle;
  double retrieve_s = 0, first_token_s = 0, total_s = 0, decode_tokens_per_s = 0;
  std::string model, adapter, kv;
};

struct ChatOptions {
  std::int64_t max_tokens = 256;
  Chain sampler;           ///< of replies that a reader does not read from passages; empty: greedy
  std::uint64_t seed = 0;  ///< of the sampler
  std::function<bool(std::string_view)> on_text;  ///< streamed reply; false stops
  /// Told before a reply that is not from memory.
  std::function<void(std::string_view)> on_note;
};

/// A turn of a chat.
struct ChatReply {
  std::string text;
  bool from_memory = false;  ///< read from passages, or "not found in memory"; else the model's own
  std::vector<Citation> citations;  ///< as an answer's
  std::int64_t tokens = 0;
  bool cut = false;  ///< the reply ends where its tokens were used up
  double seconds = 0;
  std::int64_t moved_to_memory =
      0;             ///< turns that fell out of the context and became spans of the session
  std::string note;  ///< what was left out and why; empty if nothing was
  std::string
      turns_obstacle;  ///< why the turns could not be stored, in one line; empty when they were
};

struct MemoryOptions {
  MemoryFile::Access access = MemoryFile::Access::read_write;
  std::optional<std::int64_t> budget_bytes;
  std::string kv;  ///< KV spec of a new memory; empty: quantize(bits=8)
  /// How a new memory makes states smaller when its budget is full, KV specs separated by ';' that are taken one after the
  /// other before a state is given up; empty: quantize(bits=4).
  std::string consolidate;
  bool strict = false;
};

class Memory {
 public:
  /// Opens or creates a memory file. A new one freezes the model's prompt, the KV spec and the context mode.
  /// Throws Error as MemoryFile::open, Error(usage) for a KV spec or context mode that differs from the file's own.
  static std::unique_ptr<Memory> open(const std::filesystem::path& path,
                                      std::shared_ptr<MemoryModels> models,
                                      const MemoryOptions& options);
  ~Memory();

  /// Reads documents into the memory; Error(busy) if another process reads into it.
  ReadReport read(std::vector<Document> documents, const ReadOptions& options);

  /// Spans for a question, best first.
  std::vector<CandidateReport> search(const std::string& query, std::int64_t limit,
                                      const std::vector<std::string>& sources = {});

  /// Answers one question.
  Answer ask(const std::string& question, const AskOptions& options);

  /// Goes on writing from the end of what was read: the last spans placed, the text continued. With a KV spec, the source
  /// is read again under it, as much as fits or, where its entries are placed near, all of it.
  struct Continuation {
    std::string text, stop_reason;
    std::int64_t tokens_placed = 0, document_tokens_evaluated = 0, generated_tokens = 0;
    std::int64_t tokens_left_out = 0;  ///< of the source, before what was read or placed
    double seconds = 0;
  };
  Continuation continue_text(std::int64_t max_tokens, const Chain& sampler, std::uint64_t seed,
                             const std::string& source,
                             const std::function<bool(std::string_view)>& on_text,
                             const std::string& kv = "");

  /// One turn of a session kept in the file; the turn is on the disk before this returns, or the reply says why not. A
  /// question that the memory has nothing on is told so; to what is no question the model replies in its own words.
  ChatReply chat(const std::string& session, const std::string& message,
                 const ChatOptions& options);

  /// Structure and checksums, and `deep` random spans' states recomputed from the text and compared.
  VerifyReport verify(std::int64_t deep, std::uint64_t seed = 0);

  [[nodiscard]] MemoryFile& file() { return *file_; }
  [[nodiscard]] std::string model_name() const;
  [[nodiscard]] std::string kv() const;
  /// How states are made smaller when the budget is full.
  [[nodiscard]] std::string consolidate() const;
  /// As MemoryFile::set_budget, states being made smaller as the memory says before they are given up; loads the model where
  /// there are any.
  StoreReport set_budget(std::int64_t bytes);
  /// Of the model that answers; kNoAdapter for none.
  [[nodiscard]] const std::string& adapter() const { return adapter_; }

  /// The memory's reader, made when first needed (its model is loaded, the prefix run).
  Reader& reader();
  [[nodiscard]] const Prompt& prompt() const { return prompt_; }
  [[nodiscard]] const MemoryModels& models() const { return *models_; }
  /// Loads the embedder and the search index, if they are not loaded yet or the file has changed.
  void load_index() { static_cast<void>(index()); }
  /// Spans for a query with all their scores, best first; `session_too`: also what chats have left.
  std::vector<Candidate> retrieve(const std::string& query, std::int64_t limit,
                                  const std::vector<std::string>& sources, bool session_too);
  /// Labels of the documents by id.
  [[nodiscard]] std::map<std::int64_t, std::string> labels();
  /// The documents as they were when the index was loaded; their `with_states` may have changed since.
  [[nodiscard]] const std::vector<DocumentInfo>& documents();

 private:
  Memory() = default;
  struct Index;
  Index& index();
  const LexicalIndex& lexical();
  void store_index();
  void compute_states(ReadReport& report, const ReadOptions& options);
  /// Turns that no longer fit the context become spans of the session; how many did.
  std::int64_t move_old_turns(const std::string& session, const std::vector<Turn>& turns);

  std::shared_ptr<MemoryModels> models_;
  std::unique_ptr<MemoryFile> file_;
  std::unique_ptr<Index> index_;
  std::shared_ptr<Reader> reader_;
  Prompt prompt_;
  std::string kv_spec_, adapter_;
  bool strict_ = false;
};

/// Answers from several memories at once: candidates of all are ranked together.
Answer ask(const std::vector<Memory*>& memories, const std::string& question,
           const AskOptions& options);

}  // namespace mneme
