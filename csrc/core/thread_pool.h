// One pool of threads for the whole module: asked for by job, sized by the caller, safe after fork, interruptible.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace pyalign {

// Whether work should stop. The calling thread asks `check` now and then (Python's signal handlers run in it);
// every thread reads `stopped`.
class Interrupt {
  public:
    explicit Interrupt(std::function<bool()> check);
    // Called by any thread between pieces of work; only the calling thread runs the check, at most 20 times a second.
    bool stopped();

  private:
    std::function<bool()> check_;
    std::atomic<bool> stopped_{false};
    uint64_t owner_;
    int64_t next_ns_;
};

// Runs body(worker) for worker = 0 .. workers - 1, worker 0 on the calling thread, and returns when all are done.
// Called from inside a body, or while another thread uses the pool, it runs the bodies one after another.
// The first exception of any body is rethrown here.
void run_on_threads(int workers, const std::function<void(int)>& body, Interrupt& interrupt);

// Runs body(index) for every index below count, each once, handed out in order to at most `threads` threads.
// Stops handing out when interrupted.
void run_each(int threads, int64_t count, Interrupt& interrupt, const std::function<void(int64_t)>& body);

}  // namespace pyalign
