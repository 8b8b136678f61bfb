// What an autograd function saves for its backward besides tensors and numbers.
#pragma once

#include <ATen/core/ivalue.h>

#include <memory>
#include <utility>

namespace mneme {

template <class T>
struct SavedObject final : torch::CustomClassHolder {
  explicit SavedObject(std::shared_ptr<const T> saved) : object(std::move(saved)) {}
  std::shared_ptr<const T> object;
};

/// For a context's `saved_data`, which keeps the object alive.
template <class T>
at::IValue saved(std::shared_ptr<const T> object) {
  return at::IValue::make_capsule(c10::make_intrusive<SavedObject<T>>(std::move(object)));
}

/// What saved() put there, of the same T.
template <class T>
std::shared_ptr<const T> saved_object(const at::IValue& value) {
  return c10::static_intrusive_pointer_cast<SavedObject<T>>(value.toCapsule())->object;
}

}  // namespace mneme
