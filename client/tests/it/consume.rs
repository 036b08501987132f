//! What a subscription promises: each event once and in order, wherever it starts and whatever breaks.
