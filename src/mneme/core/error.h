// Errors: what a caller can get wrong is thrown as Error; failure that is part of the job is returned as Result<T>.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace mneme {

/// What kind of thing went wrong; the command line exits 2 on `usage` and 1 on everything else.
enum class Errc {
  usage,  ///< the request itself is malformed: an unknown option, a bad spec, a missing argument
  not_found,    ///< a named thing does not exist: a file, a source, a component
  invalid,      ///< a value or shape is outside what is allowed
  corrupt,      ///< stored bytes are not what was written
  mismatch,     ///< two things do not belong together: another model, another format version
  unsupported,  ///< a correct request that this component cannot serve
  busy,         ///< somebody else holds it
  io,           ///< the operating system refused: permissions, a full disk
  full,         ///< a declared limit is reached
};

/// An error with one line that says what was wrong, where, and what to do.
class Error : public std::runtime_error {
 public:
  Error(Errc code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};

/// A value or the Error that kept it from being made.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : content_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] const Error& error() const { return std::get<1>(content_); }

  /// The value; throws the Error if there is none.
  T& value() & {
    if (!ok()) throw error();
    return std::get<0>(content_);
  }
  T&& value() && {
    if (!ok()) throw error();
    return std::get<0>(std::move(content_));
  }
  T* operator->() { return &value(); }
  T& operator*() & { return value(); }

 private:
  std::variant<T, Error> content_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error)
      : error_(std::make_shared<Error>(std::move(error))) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] bool ok() const noexcept { return !error_; }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] const Error& error() const { return *error_; }
  void value() const {
    if (error_) throw *error_;
  }

 private:
  std::shared_ptr<Error> error_;
};

[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

/// Our own bug, never reachable from input.
#define MNEME_ASSERT(condition) \
  ((condition) ? void(0) : ::mneme::assertion_failed(#condition, __FILE__, __LINE__))

}  // namespace mneme
