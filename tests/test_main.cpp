// One thread and deterministic algorithms: fresh memory is filled with NaN, so a read before a write shows.
#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <gtest/gtest.h>

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  at::set_num_threads(1);
  at::globalContext().setDeterministicAlgorithms(true, true);
  return RUN_ALL_TESTS();
}
