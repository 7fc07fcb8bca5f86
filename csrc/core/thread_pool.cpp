#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace pyalign {
namespace {

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

constexpr int64_t kCheckEvery = 50'000'000;
constexpr int64_t kLinger = 100'000;

std::atomic<uint64_t> next_thread_id{1};
thread_local uint64_t this_thread_id = 0;

uint64_t thread_id() {
    if (this_thread_id == 0) this_thread_id = next_thread_id.fetch_add(1);
    return this_thread_id;
}

// Waking a thread that sleeps takes as long as a small problem: for a while, let others run but do not sleep.
template <typename Ready>
void linger(Ready ready) {
    const int64_t end = now_ns() + kLinger;
    while (!ready() && now_ns() < end) std::this_thread::yield();
}

// The OpenMP runtime that torch runs on, where the process has one. Its threads spin for a while after each of torch's
// operations; work that woke threads of our own would fight with them for the cores.
using OpenMPParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

std::atomic<bool> forked{false};  // a forked child has none of the runtime's threads, and the runtime does not know

// Null where there is none, or where it would need threads that torch has not asked it for: it ends the process when
// the system refuses one.
OpenMPParallel openmp_parallel(int workers) {
#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
    static const auto parallel = reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    static const auto most = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
    const bool usable = parallel && most && !forked.load(std::memory_order_relaxed) && workers <= most();
    return usable ? parallel : nullptr;
#else
    static_cast<void>(workers);
    return nullptr;
#endif
}

// One piece of work, whoever runs it: worker 0 is the caller's, the others go to the threads that come, in order.
class Job {
  public:
    Job(int workers, const std::function<void(int)>& body) : workers_(workers), pending_(workers), body_(body) {}

    int workers() const { return workers_; }

    void call(int worker) {
        try {
            body_(worker);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex_);
            if (!failure_) failure_ = std::current_exception();
        }
        std::lock_guard<std::mutex> lock(mutex_);
        if (--pending_ == 0) done_.notify_all();
    }

    void call_the_rest() {
        for (int worker = next_.fetch_add(1); worker < workers_; worker = next_.fetch_add(1)) call(worker);
    }

    // For the caller, after its own share: until the others are done, with signals looked after.
    void wait(Interrupt& interrupt) {
        linger([this] { return pending_.load(std::memory_order_acquire) == 0; });
        std::unique_lock<std::mutex> lock(mutex_);
        while (!done_.wait_for(lock, std::chrono::milliseconds(50), [this] { return pending_ == 0; })) {
            lock.unlock();
            interrupt.stopped();
            lock.lock();
        }
    }

    void rethrow() const {
        if (failure_) std::rethrow_exception(failure_);
    }

  private:
    const int workers_;
    std::atomic<int> pending_, next_{1};
    const std::function<void(int)>& body_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::exception_ptr failure_;
};

// Threads wait for a new generation of work. The pool is never destroyed: at exit its threads sleep, and a forked child
// forgets the parent's pool, whose threads it does not have.
class Pool {
  public:
    bool try_acquire() { return !busy_.test_and_set(std::memory_order_acquire); }
    void release() { busy_.clear(std::memory_order_release); }

    void run(Job& job, Interrupt& interrupt) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (threads_ < job.workers() - 1) {
                std::thread([this, worker = threads_ + 1, seen = generation_.load()] { serve(worker, seen); }).detach();
                ++threads_;  // not before: the system may refuse another thread
            }
            job_ = &job;
            workers_ = job.workers();
            ++generation_;
        }
        wake_.notify_all();
        job.call(0);
        job.wait(interrupt);
    }

  private:
    void serve(int worker, uint64_t seen) {
        for (;;) {
            Job* job = nullptr;
            linger([&] { return generation_.load(std::memory_order_acquire) != seen; });
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_ != seen; });
                seen = generation_;
                if (worker < workers_) job = job_;  // one that is not needed must not look at the job, it may be over
            }
            if (job) job->call(worker);
        }
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::mutex mutex_;
    std::condition_variable wake_;
    Job* job_ = nullptr;
    std::atomic<uint64_t> generation_{0};
    int threads_ = 0, workers_ = 0;
};

void run_on_openmp(OpenMPParallel parallel, Job& job, Interrupt& interrupt) {
    struct Share {
        Job& job;
        Interrupt& interrupt;
        uint64_t caller;
    } share{job, interrupt, thread_id()};
    const auto work = [](void* data) {
        const Share& mine = *static_cast<Share*>(data);
        if (thread_id() == mine.caller) {
            mine.job.call(0);
            mine.job.call_the_rest();  // the runtime may give fewer threads than asked for
            mine.job.wait(mine.interrupt);
        } else {
            mine.job.call_the_rest();
        }
    };
    parallel(work, &share, static_cast<unsigned>(job.workers()), 0);
}

std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
    static const bool registered = [] {
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr), forked.store(true); });
#endif
        return true;
    }();
    (void)registered;
    Pool* existing = pool.load();
    if (!existing) {
        Pool* fresh = new Pool;
        if (pool.compare_exchange_strong(existing, fresh)) return *fresh;
        delete fresh;
    }
    return *existing;
}

}  // namespace

Interrupt::Interrupt(std::function<bool()> check)
    : check_(std::move(check)), owner_(thread_id()), next_ns_(now_ns() + kCheckEvery) {}

bool Interrupt::stopped() {
    if (stopped_.load(std::memory_order_relaxed)) return true;
    if (thread_id() != owner_) return false;
    const int64_t now = now_ns();
    if (now < next_ns_) return false;
    next_ns_ = now + kCheckEvery;
    if (check_ && check_()) stopped_.store(true, std::memory_order_relaxed);
    return stopped_.load(std::memory_order_relaxed);
}

void run_on_threads(int workers, const std::function<void(int)>& body, Interrupt& interrupt) {
    if (workers <= 1 || !the_pool().try_acquire()) {
        for (int worker = 0; worker < workers; ++worker) body(worker);
        return;
    }
    struct Release {
        Pool& held;
        ~Release() { held.release(); }
    } guard{the_pool()};
    Job job(workers, body);
    if (const OpenMPParallel parallel = openmp_parallel(workers)) {
        run_on_openmp(parallel, job, interrupt);
    } else {
        guard.held.run(job, interrupt);
    }
    job.rethrow();
}

void run_each(int threads, int64_t count, Interrupt& interrupt, const std::function<void(int64_t)>& body) {
    const int workers = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(count, 1)));
    std::atomic<int64_t> next{0};
    run_on_threads(
        workers,
        [&](int) {
            for (int64_t index = next.fetch_add(1); index < count; index = next.fetch_add(1)) {
                if (interrupt.stopped()) return;
                body(index);
            }
        },
        interrupt);
}

}  // namespace pyalign
