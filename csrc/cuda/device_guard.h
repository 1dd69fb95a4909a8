// The current device while a launcher works: that of its tensors, and afterwards the caller's again.
#pragma once

#include "cuda/status.h"

namespace lumos {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check_cuda("the current device", cudaGetDevice(&before_));
    if (before_ != device_) check_cuda("the device of the tensors", cudaSetDevice(device_));
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

}  // namespace lumos
