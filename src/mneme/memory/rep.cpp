#include "mneme/memory/rep.h"

namespace mneme {

std::string_view rep_kind_name(RepKind kind) noexcept {
  switch (kind) {
    case RepKind::text:
      return "text";
    case RepKind::ids:
      return "ids";
    case RepKind::embedding:
      return "embedding";
    case RepKind::pooled:
      return "pooled";
    case RepKind::hidden:
      return "hidden";
    case RepKind::slots:
      return "slots";
    case RepKind::kv:
      return "kv";
    case RepKind::state:
      return "state";
    case RepKind::latent:
      return "latent";
  }
  return "text";
}

bool is_state(RepKind kind) noexcept { return kind >= RepKind::hidden; }

}  // namespace mneme
