//! What files on a device promise, tried by stopping the machine at every I/O, by faulting the device and by rotting it;
//! and that they are files as those of the other backends are.

mod conformance;
mod crash;
mod faults;
mod flips;
mod refusals;
mod stops;
mod work;
