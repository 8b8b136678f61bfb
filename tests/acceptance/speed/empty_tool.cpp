// Nothing but what it costs to start a program that uses libtorch: the time and memory that no program can save.
#include <ATen/ATen.h>

int main() { return at::zeros({1}).item<int>(); }
