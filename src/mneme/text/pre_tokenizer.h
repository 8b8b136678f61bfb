// PreTokenizer: cuts a text into the words that the vocabulary model encodes one by one.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::text {

/// What takes the pieces of a cut text, in order. They are views into the text or into the cutter's
/// own room: used before the call returns, or copied.
class PieceSink {
 public:
  virtual void piece(std::string_view bytes) = 0;

 protected:
  ~PieceSink() = default;
};

/// A PieceSink that calls a function.
template <class F>
class PieceFunction final : public PieceSink {
 public:
  explicit PieceFunction(F function) : function_(std::move(function)) {}
  void piece(std::string_view bytes) override { function_(bytes); }

 private:
  F function_;
};

/// One way to cut a text. Safe to use from many threads.
class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  /// Gives the non-empty pieces of a non-empty text to the sink.
  virtual void split(std::string_view text, PieceSink& sink) const = 0;
  /// Everything that decides the cuts, for the digest.
  [[nodiscard]] virtual std::string describe() const = 0;
};

/// What becomes of the matches of a pattern, as Hugging Face names it.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// Cuts at the matches of a PCRE2 pattern (UTF, Unicode properties; `\s` and `\S` mean White_Space,
/// as they do in the Oniguruma that Hugging Face uses). `invert` swaps matches and what lies
/// between. Bytes that are no UTF-8 match nothing. Throws `unsupported` if PCRE2 cannot compile the
/// pattern.
std::unique_ptr<PreTokenizerStep> split_by_pattern(std::string_view pattern, SplitBehavior behavior,
                                                   bool invert);
/// Cuts at the occurrences of a string.
std::unique_ptr<PreTokenizerStep> split_by_string(std::string_view string, SplitBehavior behavior,
                                                  bool invert);
/// Cuts numerals (Nd, Nl, No) from the rest, one by one or in runs.
std::unique_ptr<PreTokenizerStep> split_digits(bool individually);
/// Puts a space before a text that does not begin with one.
std::unique_ptr<PreTokenizerStep> prefix_space();
/// BERT's: white space is dropped, every punctuation character stands alone.
std::unique_ptr<PreTokenizerStep> split_like_bert();

/// The patterns of well-known byte-level tokenizers. Their matches cover every text.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Steps in a row: each cuts the pieces of the one before.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<std::unique_ptr<PreTokenizerStep>> steps)
      : steps_(std::move(steps)) {}

  /// Gives the pieces of a text to the sink; without steps, the text itself.
  void split(std::string_view text, PieceSink& sink) const;
  [[nodiscard]] std::string describe() const;

 private:
  void split_from(std::size_t step, std::string_view text, PieceSink& sink) const;

  std::vector<std::unique_ptr<PreTokenizerStep>> steps_;
};

}  // namespace mneme::text
