# A linear reward program by judgement, written by `delphi linear-program`.
# Environment: MiniGrid-DoorKey-6x6-v0. Task: Pick up the key, open the locked door and go to the goal.
# Judge: smollm2 (transformers/cpu/float32), rubric feature_sign version 1 (3411c89aee85253a), theta 0.413.
# Changes were measured over 16,384 random steps, seed 1; over them the sum of the components has deviation 1.
# A control: signs permuted among the features, seed 1; 2 of 8 differ.
# Left out, never change in random play: carrying_ball, carrying_box, distance_to_ball, distance_to_box,
# distance_to_lava


def reward(before, after, start, action):
    return {
        # doors open: p = 0.603, weight -1.000
        "doors_open": -0.567948 * (after.doors_open - before.doors_open) / 0.0382725,
        # distance to key: p = 0.274, weight -0.733
        "distance_to_key": -0.416306 * (after.distance_to_key - before.distance_to_key) / 0.247543,
        # doors locked: p = 0.286, weight +0.668
        "doors_locked": 0.379174 * (after.doors_locked - before.doors_locked) / 0.0259024,
        # distance to door: p = 0.310, weight -0.544
        "distance_to_door": -0.308887 * (after.distance_to_door - before.distance_to_door) / 0.214663,
        # carrying key: p = 0.341, weight -0.379
        "carrying_key": -0.215412 * (after.carrying_key - before.carrying_key) / 0.165359,
        # carrying: p = 0.380, weight -0.171
        "carrying": -0.0973335 * (after.carrying - before.carrying) / 0.165359,
        # direction: p = 0.436, weight +0.121
        "direction": 0.068738 * (after.direction - before.direction) / 0.920549,
        # distance to goal: p = 0.428, weight +0.080
        "distance_to_goal": 0.0457031 * (after.distance_to_goal - before.distance_to_goal) / 0.214663,
    }
