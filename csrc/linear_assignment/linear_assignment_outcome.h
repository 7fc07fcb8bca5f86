// How the solution of one problem ended; for device code too.
#pragma once

namespace pyalign {

enum class AssignmentOutcome { solved = 0, not_finite = 1, infeasible = 2, interrupted = 3 };

}  // namespace pyalign
