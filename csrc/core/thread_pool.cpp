#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
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

// Threads wait for a new generation of work. The pool is never destroyed: at exit its threads sleep, and a forked child
// forgets the parent's pool, whose threads it does not have.
class Pool {
  public:
    bool try_acquire() { return !busy_.test_and_set(std::memory_order_acquire); }
    void release() { busy_.clear(std::memory_order_release); }

    void run(int workers, const std::function<void(int)>& body, Interrupt& interrupt) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(threads_) < workers - 1) {
                const int worker = ++threads_;
                std::thread([this, worker, seen = generation_.load()] { serve(worker, seen); }).detach();
            }
            body_ = &body;
            workers_ = workers;
            pending_ = workers - 1;
            failure_ = nullptr;
            ++generation_;
        }
        wake_.notify_all();
        call(body, 0);
        linger([this] { return pending_.load(std::memory_order_acquire) == 0; });
        std::unique_lock<std::mutex> lock(mutex_);
        while (!done_.wait_for(lock, std::chrono::milliseconds(50), [this] { return pending_ == 0; })) {
            lock.unlock();
            interrupt.stopped();
            lock.lock();
        }
        body_ = nullptr;
        if (failure_) std::rethrow_exception(failure_);
    }

  private:
    // Waking a thread that sleeps takes as long as a small problem: for a while, let others run but do not sleep.
    template <typename Ready>
    static void linger(Ready ready) {
        const int64_t end = now_ns() + kLinger;
        while (!ready() && now_ns() < end) std::this_thread::yield();
    }

    void call(const std::function<void(int)>& body, int worker) {
        try {
            body(worker);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex_);
            if (!failure_) failure_ = std::current_exception();
        }
    }

    void serve(int worker, uint64_t seen) {
        for (;;) {
            const std::function<void(int)>* body = nullptr;
            linger([&] { return generation_.load(std::memory_order_acquire) != seen; });
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_ != seen; });
                seen = generation_;
                if (worker < workers_) body = body_;
            }
            if (!body) continue;
            call(*body, worker);
            std::lock_guard<std::mutex> lock(mutex_);
            if (--pending_ == 0) done_.notify_all();
        }
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int)>* body_ = nullptr;
    std::exception_ptr failure_;
    std::atomic<uint64_t> generation_{0};
    std::atomic<int> pending_{0};
    int threads_ = 0, workers_ = 0;
};

std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
    static const bool registered = [] {
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
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
    if (workers > 1 && the_pool().try_acquire()) {
        struct Release {
            Pool& held;
            ~Release() { held.release(); }
        } guard{the_pool()};
        guard.held.run(workers, body, interrupt);
        return;
    }
    for (int worker = 0; worker < workers; ++worker) body(worker);
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
