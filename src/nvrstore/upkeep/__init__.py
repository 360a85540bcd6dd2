"""What keeps an archive in shape over years: retention, holds, scrub, capacity."""
