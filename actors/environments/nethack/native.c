/* Steps B NetHack engines in one call, and reads what a policy sees out of the arrays that they have written.
 *
 * native.py compiles it; engine_calls.py checks that the structures below are NLE's before it steps. Nothing here
 * allocates, prints or calls Python; the results are those of the Python beside each call, to the last bit. */

#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>

enum { HEIGHT = 21, WIDTH = 79, CELLS = HEIGHT * WIDTH }; /* of a map, which has one more cell for what is outside */
enum { ASKING = 1, READING_LINE = 2, WAITING_FOR_SPACE = 3, NUM_INTERNAL = 9, NUM_PROGRAM_STATE = 6 };
enum { ROUNDED_WIDTH = (WIDTH + 7) / 8 * 8 };
enum { MESSAGE = 256, MAX_EARLIER = 8 };

struct observation { /* nle_obs */
    int32_t action, done;
    int8_t in_normal_game;
    int32_t how_done;
    void *arrays[20];
};

struct loader { /* nledl_ctx */
    char path[1024];
    void *library, *context;
    void *(*step)(void *, struct observation *);
};

struct game { /* what Python's object of the engine owns */
    void *reserved;
    struct observation observation;
    struct loader *loader;
};

struct batch {
    int64_t num_games;
    struct game *const *games;
    const int32_t *internal, *program_state;                /* [B, NUM_INTERNAL], [B, NUM_PROGRAM_STATE] */
    const uint8_t *messages;                                /* [B, MESSAGE] */
    const uint8_t *attended;                                /* [B]: games that are stepped once, and are busy */
    const char *const *left;                                /* questions with one of these words are the agent's */
    int64_t num_left;
    int64_t passes_prompts;                                 /* whether `--More--` is answered here */
    uint8_t *done, *playing, *busy, *num_earlier, *earlier; /* [B], [B], [B], [B], [B, MAX_EARLIER, MESSAGE] */
};

static void press(struct game *game, int32_t key) {
    game->observation.action = key;
    game->loader->step(game->loader->context, &game->observation);
}

static int is_left(const struct batch *batch, const uint8_t *message) {
    for (int64_t j = 0; j < batch->num_left; j++)
        if (memmem(message, MESSAGE, batch->left[j], strlen(batch->left[j]))) return 1;
    return 0;
}

/* One key in each game, and a space at each `--More--` that it leads to; the message lines before each space are kept.
 * A game is busy where more has to be done: a question that is not the agent's, a text prompt, the end of the game.
 * Returns B, or the first game that could not be stepped: those after it have not been. */
int64_t step_games(const struct batch *batch, const int64_t *keys) {
    for (int64_t i = 0; i < batch->num_games; i++) {
        struct game *game = batch->games[i];
        const struct observation *seen = &game->observation;
        const int32_t *prompts = batch->internal + i * NUM_INTERNAL, *over = batch->program_state + i * NUM_PROGRAM_STATE;
        const uint8_t *message = batch->messages + i * MESSAGE;
        int passes = batch->passes_prompts && !batch->attended[i], kept = 0;
        if (seen->done || !game->loader || !game->loader->context) return i;
        press(game, (int32_t)keys[i]);
        while (passes && prompts[WAITING_FOR_SPACE] && !*over && !seen->done && kept < MAX_EARLIER) {
            memcpy(batch->earlier + (i * MAX_EARLIER + kept++) * MESSAGE, message, MESSAGE);
            press(game, ' ');
        }
        int asks = prompts[ASKING] && !(passes && !seen->done && is_left(batch, message));
        batch->busy[i] = batch->attended[i] || *over || asks || prompts[READING_LINE] || prompts[WAITING_FOR_SPACE];
        batch->num_earlier[i] = (uint8_t)kept;
        batch->done[i] = seen->done != 0;
        batch->playing[i] = seen->in_normal_game != 0;
    }
    return batch->num_games;
}

/* The `rows` x `columns` cells around `cell` of a map, whose cells have `size` bytes and in `out` `step` bytes. */
static inline void cut_window(const uint8_t *map, int64_t cell, int64_t rows, int64_t columns, int64_t size, int64_t step,
                              uint8_t *out) {
    const uint8_t *outside = map + CELLS * size;
    int64_t top = cell / WIDTH - rows / 2, left = cell % WIDTH - columns / 2;
    for (int64_t row = top; row < top + rows; row++) {
        int inside = row >= 0 && row < HEIGHT;
        int64_t begin = inside && left < 0 ? -left : 0, end = WIDTH - left < columns ? WIDTH - left : columns, column = 0;
        if (!inside) begin = end = columns;
        for (; column < begin; column++, out += step) memcpy(out, outside, size);
        for (; column < end; column++, out += step) memcpy(out, map + (row * WIDTH + left + column) * size, size);
        for (; column < columns; column++, out += step) memcpy(out, outside, size);
    }
}

/* The windows around the agents at `x`, `y` (each `stride` numbers after the last), of `num_layers` maps
 * [N, CELLS + 1]; an agent may be off the map between two levels. */
void cut_windows(int64_t num_games, const int64_t *x, const int64_t *y, int64_t stride, int64_t rows, int64_t columns,
                 int64_t num_layers, int64_t size, const uint8_t *const *maps, uint8_t *out) {
    for (int64_t i = 0; i < num_games; i++, x += stride, y += stride) {
        int64_t cell = (*y > 0 ? *y : 0) * WIDTH + (*x > 0 ? *x : 0);
        if (cell >= CELLS) cell = CELLS - 1;
        for (int64_t layer = 0; layer < num_layers; layer++) {
            const uint8_t *map = maps[layer] + i * (CELLS + 1) * size;
            if (size == 2)
                cut_window(map, cell, rows, columns, 2, 2 * num_layers, out + 2 * layer);
            else
                cut_window(map, cell, rows, columns, 1, num_layers, out + layer);
        }
        out += rows * columns * num_layers * size;
    }
}

/* How many cells of each map are not `unseen`; the maps begin `stride` cells after each other. */
void count_seen(int64_t num_games, const int16_t *glyphs, int64_t stride, int16_t unseen, int16_t *counts) {
    for (int64_t i = 0; i < num_games; i++, glyphs += stride) {
        int16_t count = 0;
        for (int j = 0; j < CELLS; j++) count += glyphs[j] != unseen;
        counts[i] = count;
    }
}

/* Which kinds of things each map shows, but in the agent's own cell: bit k of `kinds`, counted from the highest of the
 * first byte, for the kind k > 0 of a glyph, as `kind_of` numbers them. Glyphs whose distance from `symbols` is less
 * than `num_walls`, or `num_floors` from `floors` on, have none: nearly all cells, so they are passed over eight at a time. */
void note_kinds(int64_t num_games, const int16_t *glyphs, const int64_t *x, const int64_t *y, int64_t stride,
                uint16_t symbols, uint16_t num_walls, uint16_t floors, uint16_t num_floors, const uint16_t *kind_of,
                uint8_t *kinds, int64_t row_size) {
    for (int64_t i = 0; i < num_games; i++, glyphs += CELLS + 1, x += stride, y += stride, kinds += row_size) {
        int64_t own = (*y > 0 ? *y : 0) * WIDTH + (*x > 0 ? *x : 0);
        for (int64_t row = 0; row < CELLS; row += WIDTH) {
            uint8_t told[ROUNDED_WIDTH] = {0};
            for (int j = 0; j < WIDTH; j++) {
                uint16_t symbol = (uint16_t)(glyphs[row + j] - symbols);
                told[j] = (symbol >= num_walls) & ((uint16_t)(symbol - floors) >= num_floors);
            }
            for (int first = 0; first < ROUNDED_WIDTH; first += 8) {
                uint64_t any;
                memcpy(&any, told + first, 8);
                for (int j = first; any && j < first + 8; j++) {
                    uint16_t kind = told[j] && row + j != own ? kind_of[glyphs[row + j]] : 0;
                    if (kind) kinds[kind >> 3] |= (uint8_t)(0x80 >> (kind & 7));
                }
            }
        }
    }
}
