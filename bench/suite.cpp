#include "bench/suite.h"

namespace mneme {

std::filesystem::path default_data_folder() { return MNEME_DATA_FOLDER; }

}  // namespace mneme
