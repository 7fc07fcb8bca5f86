// The launches of one call of cross moments, in order; `Queue` runs a kernel body on the device or on the host.
#pragma once

#include "cross_moments/moments_look.h"
#include "cross_moments/moments_plan.h"

namespace pyalign {

struct Grid {
    int64_t x, y, z;
};

template <typename Queue>
class MomentLaunches {
  public:
    MomentLaunches(const MomentPlan& plan, const MomentViews& views, const MomentRecord& record, int32_t* status,
                   bool allow_tf32, Queue& queue)
        : plan_(plan), views_(views), record_(record), status_(status), allow_tf32_(allow_tf32), queue_(queue) {}

    // Sums in the workspace; the record is only read. With `exact` every sample is looked at first.
    void measure(bool exact) {
        look(exact);
        for (int64_t launch = 0; launch < plan_.launches(); ++launch) {
            const MomentSlices slices = slices_of(launch);
            products(0, 0, 1, slices);
            if (plan_.sizes.full) {
                products(1, 0, 0, slices);
                products(2, 1, 1, slices);
            }
            if (launch + 1 < plan_.launches()) fold(slices, launch == 0);
        }
        JudgeBody judge{{plan_.units[0], plan_.units[1]},
                        {count(0), count(1)},
                        {plan_.blocks[0] * plan_.tile, plan_.blocks[1] * plan_.tile},
                        plan_.slices,
                        plan_.tile,
                        {record_.mean_a, record_.mean_b},
                        record_.count,
                        plan_.count,
                        plan_.totals,
                        status_,
                        plan_.sizes.in_double,
                        exact};
        queue_.run(judge, {threads(count(0) + count(1), JudgeBody::kThreads), 1, 1}, JudgeBody::shared_bytes());
    }

    // Adds what `measure` left in the workspace to the record.
    void commit() {
        plan_.sizes.in_double ? commit_as<double, kDoubleTile>() : commit_as<float, kPairTile>();
        AdvanceBody advance{{plan_.units[0], plan_.units[1]},
                            {count(0), count(1)},
                            plan_.totals,
                            record_.count,
                            {record_.mean_a, record_.mean_b},
                            {record_.square_a, record_.square_b},
                            plan_.sizes.full};
        queue_.run(advance, {threads(count(0) + count(1), AdvanceBody::kThreads), 1, 1}, AdvanceBody::shared_bytes());
    }

  private:
    int64_t count(int which) const { return plan_.sizes.units[which]; }
    static int64_t threads(int64_t wanted, int64_t of) { return (wanted + of - 1) / of; }

    MomentSlices slices_of(int64_t launch) const {
        const int64_t first = launch * plan_.per_launch;
        return {plan_.chunk, first, std::min(plan_.per_launch, plan_.slices - first)};
    }

    bool narrow_pair() const {
        const DType dtype = views_.stream[0].dtype;
        return dtype == views_.stream[1].dtype && (dtype == DType::f16 || dtype == DType::bf16);
    }

    void look(bool exact) {
        const MomentUnits units[2] = {plan_.units[0], plan_.units[1]};
        LookBody body{{views_.stream[0], views_.stream[1]},
                      {units[0], units[1]},
                      views_.samples,
                      status_,
                      exact,
                      plan_.sizes.in_double,
                      narrow_pair()};
        queue_.run(body, {count(0) + count(1), 1, 1}, LookBody::shared_bytes());
        BlockShiftsBody blocks{plan_.blocks[0], plan_.tile, {count(0), count(1)}, {units[0], units[1]}};
        queue_.run(blocks, {plan_.blocks[0] + plan_.blocks[1], 1, 1}, BlockShiftsBody::shared_bytes());
    }

    void products(int pair, int a, int b, const MomentSlices& slices) {
        if (plan_.sizes.in_double) return products_double(pair, a, b, slices);
        const ProductWork<float> work = work_of<float>(pair, a, b, slices);
        if (narrow_pair()) {
            if (views_.stream[0].dtype == DType::bf16) {
                product<Narrow::bf16, 1, 64, false>(work, a, b);
            } else {
                product<Narrow::f16, 1, 64, false>(work, a, b);
            }
        }
        if (allow_tf32_ && !narrow_pair()) {
            product<Narrow::f16, 1, 32, true>(work, a, b);
        } else {
            product<Narrow::f16, 2, 32, true>(work, a, b);
        }
    }

    template <Narrow kKind, int kPieces, int kDepth, bool kWide>
    void product(const ProductWork<float>& work, int a, int b) {
        if (views_.units_first) {
            run_product(ProductBody<kKind, kPieces, kDepth, kWide, true>{work, plan_.flushes}, a, b);
        } else {
            run_product(ProductBody<kKind, kPieces, kDepth, kWide, false>{work, plan_.flushes}, a, b);
        }
    }

    template <typename Body>
    void run_product(const Body& body, int a, int b) {
        queue_.run(body, {plan_.blocks[b], plan_.blocks[a], body.work.slices.count}, Body::shared_bytes(plan_.flushes));
    }

    void products_double(int pair, int a, int b, const MomentSlices& slices) {
        const DoubleProductBody body{work_of<double>(pair, a, b, slices)};
        queue_.run(body, {plan_.blocks[b], plan_.blocks[a], slices.count}, DoubleProductBody::shared_bytes());
    }

    template <typename Sum>
    ProductWork<Sum> work_of(int pair, int a, int b, const MomentSlices& slices) const {
        return {views_.stream[a],
                views_.stream[b],
                plan_.units[a],
                plan_.units[b],
                views_.samples,
                slices,
                a,
                b,
                pair != 0,
                pair == 0,
                plan_.blocks[a] * plan_.tile,
                plan_.blocks[b] * plan_.tile,
                static_cast<Sum*>(plan_.partial[pair]),
                plan_.count};
    }

    void fold(const MomentSlices& slices, bool begins) {
        for (int pair = 0; pair < 3; ++pair) {
            const int64_t entries = plan_.pairs[pair] * plan_.tile * plan_.tile;
            if (entries == 0) continue;
            if (plan_.sizes.in_double) {
                fold_as(static_cast<const double*>(plan_.partial[pair]), pair, entries, slices, begins);
            } else {
                fold_as(static_cast<const float*>(plan_.partial[pair]), pair, entries, slices, begins);
            }
        }
    }

    template <typename Sum>
    void fold_as(const Sum* partial, int pair, int64_t entries, const MomentSlices& slices, bool begins) {
        const FoldBody<Sum> body{partial, plan_.sum[pair], entries, slices.count, begins};
        queue_.run(body, {threads(entries, FoldBody<Sum>::kThreads), 1, 1}, FoldBody<Sum>::shared_bytes());
    }

    template <typename Sum, int kTile>
    void commit_as() {
        double* const into[3] = {record_.comoment, record_.square_a, record_.square_b};
        const int of[3][2] = {{0, 1}, {0, 0}, {1, 1}};
        const int64_t last = slices_of(plan_.launches() - 1).count;
        using Body = CommitBody<Sum, kTile>;
        for (int pair = 0; pair < (plan_.sizes.full ? 3 : 1); ++pair) {
            const auto [a, b] = of[pair];
            const Body body{static_cast<const Sum*>(plan_.partial[pair]),
                            plan_.sum[pair],
                            last,
                            plan_.units[a],
                            plan_.units[b],
                            count(a),
                            count(b),
                            plan_.blocks[b],
                            plan_.totals,
                            into[pair],
                            pair != 0};
            queue_.run(body, {plan_.blocks[b], plan_.blocks[a], kTile / Body::kRows}, Body::shared_bytes());
        }
    }

    const MomentPlan& plan_;
    const MomentViews& views_;
    const MomentRecord& record_;
    int32_t* status_;
    bool allow_tf32_;
    Queue& queue_;
};

}  // namespace pyalign
